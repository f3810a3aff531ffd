"""Test which promotions of a ledger stand after rollbacks and withdrawals, and which requests count as forgotten."""

from expunge.ledger.ledger import GENESIS, Entry
from expunge.promotion.history import PROMOTION, ROLLBACK, WITHDRAWN, History


def chain(*decisions):
    entries = []
    for kind, facts in decisions:
        entries.append(Entry.after(entries[-1] if entries else None, kind, facts, "2026-01-01T00:00:00+00:00"))
    return entries


def promoted(version, model="m"):
    return PROMOTION, {"model": model, "version": version, "request": f"r{version}"}


def back(version):
    return ROLLBACK, {"model": "m", "version": version}


def standing(*decisions):
    return [e.facts["version"] for e in History.of(chain(*decisions), "m").standing]


def test_rollbacks_take_promotions_back():
    assert standing(promoted("1"), promoted("2"), promoted("3")) == ["1", "2", "3"]
    assert standing(promoted("1"), promoted("2"), promoted("3"), back("2")) == ["1", "2"]
    assert standing(promoted("1"), promoted("2"), back("1"), promoted("3")) == ["1", "3"]
    assert standing(promoted("1"), promoted("2"), back("2")) == ["1", "2"]  # This only puts a moved alias back.


def test_what_was_promoted_stays_forgotten():
    history = History.of(chain(promoted("1"), promoted("2"), back("1")), "m")
    assert history.requests() == {"r1": "1", "r2": "2"} and history.champion["version"] == "1"


def test_other_models_and_withdrawn_promotions_do_not_count():
    entries = chain(promoted("1"), promoted("9", "other"), promoted("2"))
    entries.append(Entry.after(entries[-1], WITHDRAWN, {"model": "m", "entry": entries[2].hash}, "t"))
    history = History.of(entries, "m")
    assert [e.facts["version"] for e in history.standing] == ["1"] and history.requests() == {"r1": "1"}
    assert history.head == entries[-1].hash
    assert History.of([], "m") == History((), (), (), GENESIS, GENESIS) and History.of([], "m").champion is None
