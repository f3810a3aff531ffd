"""Test reports of a matrix with 200 entries: every table has all of them, and no cost grows with their square."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from expunge.report import dvc_files, export, html, tables
from tests.erasure.load import calls

RENDERED = {
    "results.md": tables.markdown,
    "results.csv": export.results_csv,
    "metrics": dvc_files.metrics,
    "plots": dvc_files.plots,
    "table of the page": html.main_table,
}


def matrix(run, entries: int):
    """Return summary and evidence with `entries` methods, most of them copies of one under other names."""
    summary, evidence = run()
    summary = copy.deepcopy(summary)
    for i in range(entries - len(summary["methods"])):
        summary["methods"][f"loft-{i:03d}"] = copy.deepcopy(summary["methods"]["loft"])
    logits = evidence.logits | {name: evidence.logits["loft"] for name in summary["methods"]}
    return summary, replace(evidence, logits=logits)


@pytest.mark.parametrize("name", RENDERED)
def test_a_table_of_200_methods_is_whole_and_not_quadratic(name, run):
    render = RENDERED[name]
    few, many = matrix(run, 50)[0], matrix(run, 200)[0]
    text = str(render(many))
    assert not [m for m in many["methods"] if m not in text]
    assert calls(lambda: render(many)) < 6 * calls(lambda: render(few))


@pytest.mark.slow
def test_the_page_draws_a_part_of_200_methods_and_says_so(run):
    summary, evidence = matrix(run, 200)
    drawn = html.sections(summary, evidence)
    page = html.render(summary, evidence, drawn)
    assert f"The other methods, {html.MOST_DRAWN} of " in page and len(page) < 4_000_000
    assert max(len(s.panels) + len(s.more) for s in drawn) < 60
    assert all(f"loft-{i:03d}" in page for i in range(197))
