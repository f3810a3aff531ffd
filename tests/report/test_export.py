"""Test that results.csv holds every number of the summary exactly once, with its spread and interval."""

from __future__ import annotations

import csv
import io

import pytest

from expunge.report.export import results_csv
from expunge.report.metrics import lookup
from expunge.report.tables import candidates


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from leaves(item, (*path, str(i)))
    elif type(value) in (int, float):
        yield ".".join(path), value


def test_every_number_is_there_once(run):
    summary, _ = run()
    rows = list(csv.DictReader(io.StringIO(results_csv(summary))))
    found = {(row["candidate"], row["metric"]): float(row["value"]) for row in rows}
    assert len(found) == len(rows)
    expected = {
        (name, path): value
        for name, block in candidates(summary)
        for path, value in leaves(
            {k: v for k, v in block.items() if k not in ("intervals", "spread", "verdict", "seeds")}
        )
    }
    assert found.keys() == expected.keys()
    assert all(abs(found[key] - value) <= 1e-9 * max(1, abs(value)) for key, value in expected.items())


def test_spread_and_intervals_stand_beside_their_value(run):
    summary, _ = run()
    rows = {(r["candidate"], r["metric"]): r for r in csv.DictReader(io.StringIO(results_csv(summary)))}
    path = "accuracy.test_retain"
    spread = lookup(summary["references"]["retrained"]["spread"], path)
    assert abs(float(rows["retrained", path]["spread"]) - spread) < 1e-9
    low, high = summary["methods"]["loft"]["intervals"][path]
    assert abs(float(rows["loft", path]["low"]) - low) < 1e-9 and abs(float(rows["loft", path]["high"]) - high) < 1e-9
    assert rows["loft", path]["spread"] == "" and rows["loft", "cost.fit_s"]["low"] == ""


def test_attacks_with_many_models_are_there_too(run):
    summary, _ = run(shadow=True)
    rows = {(r["candidate"], r["metric"]): r for r in csv.DictReader(io.StringIO(results_csv(summary)))}
    auc = summary["methods"]["loft"]["shadow"]["ulira"]["auc"]
    assert float(rows["loft", "shadow.ulira.auc"]["value"]) == pytest.approx(auc)
    assert ("retrained", "shadow.klom.p95") in rows
