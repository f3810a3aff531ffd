"""Test the page of a version in MLflow: the verdict first, links to the run, and a table of at most three models."""

from __future__ import annotations

import copy

import pytest

from expunge.report.metrics import METRICS
from expunge.report.version_page import version_page
from expunge.report.wording import metrics_named
from tests.report.conftest import HOSTILE

RUN = "#/experiments/1/runs/abc"
CLASSES = tuple("abcde")


@pytest.fixture
def summary(run):
    return copy.deepcopy(run()[0])


def test_the_verdict_is_the_first_line(summary):
    verdict = summary["methods"][summary["selected"]]["verdict"]
    verdict["claims"] = {"outputs": "shown", "features": "cannot tell", "backbone": "refuted", "exact": "cannot tell"}
    verdict["utility"] = "kept"
    first = version_page(summary, CLASSES, RUN).splitlines()[0]
    assert first.startswith("**Shown: outputs; utility kept.** ")
    assert f"`{summary['selected']}` forgets class c: " in first and "training rows" in first
    verdict["claims"]["outputs"] = "refuted"
    assert version_page(summary, CLASSES, RUN).startswith("**Shown: nothing; utility kept.** ")


def test_it_links_to_the_report_of_the_run_and_says_how_to_promote(summary):
    page = version_page(summary, CLASSES, RUN)
    assert f"[Report]({RUN}/artifacts/report.html)" in page and f"[all methods of the run]({RUN})" in page
    for word in ("`champion`", "`challenger`", "`reason`", "`not_promoted`", "expunge promote"):
        assert word in page


def test_the_table_has_a_line_per_metric_and_a_column_for_each_of_three_models(summary):
    head, _, *lines = [line for line in version_page(summary, CLASSES, RUN).splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "metric",
        "original",
        "retrained",
        summary["selected"],
    ]
    rows = {cells[0].strip(): cells[1:] for cells in (line.strip("|").split("|") for line in lines)}
    metric = METRICS["accuracy.forget"]
    blocks = (summary["references"]["original"], summary["references"]["retrained"])
    output = [metric.text(block) for block in (*blocks, summary["methods"][summary["selected"]])]
    assert [cell.strip() for cell in rows[metric.name]] == output


def test_it_names_metrics_in_words_and_not_by_their_paths(summary):
    verdict = summary["methods"][summary["selected"]]["verdict"]
    verdict["claims"]["backbone"] = "refuted"
    verdict["reasons"]["backbone"] = "62% of the original's excess is left (representation.alignment_z)"
    page = version_page(summary, CLASSES, RUN)
    assert "share of z of forgotten rows along retained directions" in page
    assert "alignment_z" not in page.replace("\\", "")
    assert metrics_named("it does what a control does (logit-mask)") == "it does what a control does (logit-mask)"


def test_class_names_cannot_become_markup(run):
    page = version_page(run()[0], HOSTILE, RUN)
    assert "<script>" not in page.replace("\\<script\\>", "") and "<img" not in page.replace("\\<img", "")


def test_corrections_are_called_corrections(summary):
    summary["request"].update(selector="correct", whole_classes=[])
    assert " corrects the labels of " in version_page(summary, CLASSES, RUN).splitlines()[0]
