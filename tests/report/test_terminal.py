"""Test the output of `expunge show`: the table of results and one sentence.

If no method qualifies, it also prints a table with the reasons.
"""

from __future__ import annotations

import copy

import pytest
from rich.console import Console

from expunge.report.tables import headline, markdown, reasons, rows
from expunge.report.terminal import print_result, tables
from expunge.system.files import write_json
from expunge.system.paths import SUMMARY


@pytest.mark.parametrize("selected", ["loft", None])
def test_reasons_are_a_table_and_the_result_is_a_sentence(run, tmp_path, monkeypatch, capsys, selected):
    summary = copy.deepcopy(run()[0])
    summary["selected"] = selected
    monkeypatch.chdir(tmp_path)
    write_json(SUMMARY, summary)
    print_result()
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("method  ")]
    assert len(rows) == (selected is None)
    assert [name for name, _ in reasons(summary)] == ([] if selected else list(summary["methods"]))
    assert ("| method | why not |" in markdown(summary)) == (selected is None)
    for block in summary["methods"].values():
        assert block["verdict"]["why"] not in headline(summary)
    assert "expunge ui" in printed and "make " not in printed


def test_paths_of_a_run_in_another_folder_lead_there_from_where_the_reader_stands(run, tmp_path, monkeypatch, capsys):
    workspace = tmp_path / ".expunge/demo"
    workspace.mkdir(parents=True)
    monkeypatch.chdir(workspace)
    write_json(SUMMARY, run()[0])
    print_result(tmp_path)
    (data,) = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("Data:")]
    assert (tmp_path / data).is_file() and data.startswith(".expunge/demo/")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_cell_is_cut_in_a_narrow_terminal(run, width, capsys):
    lines = rows(run()[0])
    result = tables(lines, None, width)
    console = Console(width=width)
    for table in result:
        console.print(table)
    printed = capsys.readouterr().out
    assert "…" not in printed and (len(result) == 1) == (width == 200)
    for column in zip(*lines, strict=True):
        for cell in column:
            assert cell in printed
