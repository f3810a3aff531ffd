"""Test an evaluation of drawn rows: the metrics stay near those of all rows, and the results say what was drawn."""

from functools import partial

import numpy as np
import pytest

from expunge.evaluation.rows import measured_rows
from expunge.methods.outputs import stored_classifier, stored_method
from expunge.report.evidence import read_logits
from expunge.report.schema import Summary
from expunge.report.tables import unproven
from expunge.stages import compare, evaluate
from expunge.system.files import read_json

MOST = 120


def call(main, monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["stage", *arguments])
    main()


@pytest.fixture
def workspace(copy, monkeypatch):
    monkeypatch.chdir(copy)
    return copy


def test_drawn_rows_give_the_same_answer_and_are_named(workspace, monkeypatch):
    whole = {name: read_json(workspace / f"reports/evaluation/{name}.json") for name in ("references", "loft")}
    assert whole["references"]["drawn"] == {}
    monkeypatch.setattr(evaluate, "measured_rows", partial(measured_rows, most=MOST))
    call(evaluate.main, monkeypatch)
    for name in evaluate.load_config().methods:
        call(evaluate.main, monkeypatch, name)
    found = {name: read_json(workspace / f"reports/evaluation/{name}.json") for name in ("references", "loft")}
    before, now = whole["references"]["original"]["accuracy"], found["references"]["original"]["accuracy"]
    assert all(abs(before[part] - now[part]) < 0.1 for part in before)
    assert abs(whole["loft"]["divergence"]["forget"]["js"] - found["loft"]["divergence"]["forget"]["js"]) < 0.1
    drawn = found["references"]["drawn"]
    assert drawn["retain"]["measured"] == MOST < drawn["retain"]["rows"] and "test_forget" not in drawn
    call(compare.main, monkeypatch)
    summary = read_json(workspace / "reports/summary.json")
    Summary.model_validate(summary)
    said = " ".join(unproven(summary))
    assert f"{MOST} of {drawn['retain']['rows']:,} retained training rows" in said


def test_logits_are_written_of_every_row_also_of_those_not_drawn(workspace, monkeypatch):
    monkeypatch.setattr(evaluate, "measured_rows", partial(measured_rows, most=MOST))
    call(evaluate.main, monkeypatch, "loft")
    stored = stored_classifier("original")
    rows = np.arange(len(stored.at().logits))
    with stored_method("loft", evaluate.load_config()) as loft:
        expected = loft.at().logits
    np.testing.assert_array_equal(read_logits(workspace / "data/evaluation/loft/loft.parquet", rows), expected)


def test_parts_and_chosen_rows_are_those_of_all_rows(workspace):
    stored = stored_classifier("original")
    whole = stored.at()
    np.testing.assert_array_equal(np.concatenate(list(stored.parts())), whole.logits)
    few = stored.at(np.array([5, 2, 1000]))
    np.testing.assert_allclose(few.logits, whole.logits[[5, 2, 1000]], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(few.z, whole.z[[5, 2, 1000]])
