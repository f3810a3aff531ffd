"""Test that a run deals with requests that ended in an earlier run, which was killed before it came to them."""

from __future__ import annotations

from datetime import date

import pytest

from expunge.erasure import ended
from expunge.erasure.requests import Store

TODAY = date(2026, 3, 2)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store.open(f"sqlite:///{tmp_path / 'requests.db'}")
    yield store
    store.engine.dispose()


def test_a_request_that_ended_in_a_killed_run_is_found_by_the_next(store):
    old, first, second = (
        store.add(f"R-{i}", "subjects", [f"p{i}"], received=TODAY, basis="", who="ann").id for i in range(3)
    )
    store.refuse(old, "ann", "not them")
    assert ended.ended(store) == []
    ended.watch(store)
    store.refuse(first, "ann", "not them")
    ended.watch(store)  # The run was killed before `settle`, and this is the next one.
    assert [r.id for r in ended.ended(store)] == [first]
    ended.settle()
    assert ended.ended(store) == []
    ended.watch(store)
    store.refuse(second, "ann", "not them")
    assert [r.id for r in ended.ended(store)] == [second]
