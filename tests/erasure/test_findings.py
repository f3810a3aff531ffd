"""Tests that the findings of a sweep and of its repetition after an interruption are joined without loss."""

from __future__ import annotations

from expunge.erasure.findings import joined

ROWS = {"where": "data/dataset", "what": "rows", "count": 30}
MODEL = {"where": "models/original", "what": "the model that was trained on the rows", "who": "whoever runs it"}
NOTHING: dict = {"found": [], "purged": [], "not_purgeable": [], "left": []}


def test_a_sweep_that_was_killed_at_its_end_loses_nothing():
    before = {**NOTHING, "found": [ROWS], "not_purgeable": [MODEL]}
    assert joined(before, NOTHING) == {**NOTHING, "found": [ROWS], "purged": [ROWS], "not_purgeable": [MODEL]}


def test_findings_of_a_sweep_are_listed_once():
    cache = {"where": "DVC cache", "what": "objects", "count": 117}
    looked = {**cache, "what": "objects that dvc.lock does not name", "count": 73}
    before = {**NOTHING, "found": [ROWS, looked], "not_purgeable": [MODEL]}
    after = {**NOTHING, "found": [ROWS, cache], "purged": [ROWS, cache], "not_purgeable": [MODEL]}
    assert joined(before, after) == {**after, "found": [cache, ROWS], "purged": [cache, ROWS]}


def test_what_is_left_was_not_purged():
    after = {**NOTHING, "found": [], "left": [ROWS]}
    assert joined({**NOTHING, "found": [ROWS]}, after)["purged"] == []
