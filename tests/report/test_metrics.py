"""Test the registry of metrics: it holds every metric that tables and pages show, and summaries hold their values."""

from __future__ import annotations

import string

import pytest

from expunge.evaluation.gates import stage_path
from expunge.report import html, tables, wording
from expunge.report.metrics import METRICS, Metric, lookup, name_of


def test_names_differ_and_forms_print_a_number():
    names = [metric.name for metric in METRICS.values()]
    assert len(set(names)) == len(names)
    for metric in METRICS.values():
        assert [field for _, field, _, _ in string.Formatter().parse(metric.form) if field is not None] == [""]
        assert metric.form.format(0.5)


def test_every_column_of_the_result_table_explains_itself():
    assert all(html.COLUMN_HELP[metric.heading] for metric in tables.COLUMNS)
    assert len({metric.heading for metric in tables.COLUMNS}) == len(tables.COLUMNS)


def test_the_metrics_are_those_of_a_finished_run(run):
    summary, _ = run()
    blocks = [block for _, block in tables.candidates(summary)]
    judged = {gate["path"] for block in summary["methods"].values() for gate in block["verdict"]["gates"]}
    for metric in (*tables.COLUMNS, *wording.GATES):
        known = any(metric.value(block) is not None for block in blocks)
        # These exist only for requests of single rows, for planted canaries, and for networks of pictures.
        elsewhere = {"membership.margin_excess", "membership.canary_auc", *map(stage_path, range(1, 5))}
        assert known or metric.path in judged or metric.path in elsewhere, metric.path


@pytest.mark.parametrize(("block", "text"), [({"a": {"b": 0.25}}, "25.0%"), ({"a": {}}, "–"), (None, "–")])
def test_a_missing_value_is_a_dash(block, text):
    assert Metric("a.b", "x", "{:.1%}").text(block) == text


def test_an_unknown_path_has_no_value_and_is_its_own_name():
    assert lookup({"a": 1}, "a.b") is None and name_of("not.there") == "not.there"
