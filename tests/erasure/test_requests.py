"""Tests of the store of requests, on SQLite and PostgreSQL: states, deadlines, keys and operators at once."""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import select, text

from expunge.erasure import database
from expunge.erasure.database import EVENTS, KEYS, MARKS, SUBJECTS, transaction
from expunge.erasure.requests import ErasureRequest, Store, new_id
from expunge.erasure.states import State, due_date, urgency
from expunge.ledger.ledger import Ledger
from expunge.system.errors import RequestError
from tests.erasure.load import calls

RECEIVED = date(2026, 1, 31)


def add(store: Store, values=("p1", "p2"), kind="subjects", received=RECEIVED, **more) -> ErasureRequest:
    return store.add(
        new_id(received), kind, list(values), received=received, basis="GDPR Art. 17(1)(b)", who="ann", **more
    )


def test_a_request_comes_back_as_it_was_taken_in(store):
    request = add(store, file="data/requests/x.csv")
    assert request.state == State.received and request.due == date(2026, 2, 28) and request.asked == 2
    assert store.get(request.id) == request and store.all() == [request]
    event = store.events(request.id)[0]
    assert (event.kind, event.who, event.state, event.reason) == ("intake", "ann", "received", "GDPR Art. 17(1)(b)")
    with pytest.raises(RequestError, match="no request 'R-0'"):
        store.get("R-0")


def test_every_step_of_a_request_records_who_when_and_why(store):
    id_ = add(store).id
    store.verify(id_, "ben", "passport seen", {"found": 2})
    store.change(id_, State.scheduled, "scheduling", "nightly", "due soon", {})
    store.change(id_, State.running, "run", "nightly", "", {})
    store.change(id_, State.awaiting_approval, "verdict", "nightly", "", {"claims": "outputs"})
    store.change(id_, State.running, "approval", "cem", "as good as retrained", {})
    store.change(id_, State.completed, "completion", "nightly", "", {})
    events = store.events(id_)
    assert [e.number for e in events] == [1, 2, 3, 4, 5, 6, 7]
    assert [e.state for e in events] == [
        "received", "verified", "scheduled", "running", "awaiting approval", "running", "completed",
    ]  # fmt: skip
    assert events[5].who == "cem" and events[5].reason == "as good as retrained"
    assert all(e.at.endswith("+00:00") for e in events)


@pytest.mark.parametrize("new", [State.scheduled, State.running, State.awaiting_approval, State.completed])
def test_steps_cannot_be_left_out(new, store):
    id_ = add(store).id
    with pytest.raises(RequestError, match=f"is received and cannot become {new}; it can become verified, refused"):
        store.change(id_, new, "x", "ann", "", {})
    assert store.get(id_).version == 1 and len(store.events(id_)) == 1


def test_an_extended_request_still_has_to_be_verified(store):
    id_ = add(store).id
    store.extend(id_, 2, "ann", "many records", date(2026, 2, 1))
    with pytest.raises(RequestError, match="never verified"):
        store.change(id_, State.scheduled, "scheduling", "ann", "", {})
    store.verify(id_, "ann", "", {})
    store.extend(id_, 3, "ann", "more", date(2026, 2, 1))
    assert store.change(id_, State.scheduled, "scheduling", "ann", "", {}).verified


def test_deadlines_are_calendar_months(store):
    assert due_date(date(2026, 1, 31), 1) == date(2026, 2, 28) and due_date(date(2027, 11, 30), 3) == date(2028, 2, 29)
    assert due_date(date(2026, 12, 15), 1) == date(2027, 1, 15)
    id_ = add(store).id
    extended = store.extend(id_, 3, "ann", "complex", date(2026, 2, 28))
    assert extended.due == date(2026, 4, 30) and extended.state == State.extended and extended.reason == "complex"
    for months in (1, 3, 4):
        with pytest.raises(RequestError, match="at most 3 are allowed"):
            store.extend(id_, months, "ann", "again", date(2026, 2, 28))
    late = add(store, ["p9"]).id
    with pytest.raises(RequestError, match="only be extended before"):
        store.extend(late, 2, "ann", "late", date(2026, 3, 1))
    with pytest.raises(RequestError, match="needs a reason"):
        store.extend(late, 2, "ann", " ", date(2026, 2, 1))


def test_urgency_is_overdue_due_soon_or_none():
    due = date(2026, 2, 28)
    days = (date(2026, 3, 1), due, date(2026, 2, 21), date(2026, 2, 20))
    assert [urgency(due, day, 7) for day in days] == ["overdue", "due soon", "due soon", ""]


def test_subjects_are_kept_as_hmacs_under_a_key_of_the_request(store):
    one, two = add(store), add(store, ["p2", "p3"])
    with transaction(store.engine) as c:
        keys = {r.request: bytes(r.key) for r in c.execute(select(KEYS))}
        stored = {(r.request, r.hmac) for r in c.execute(select(SUBJECTS))}
    assert len(keys[one.id]) == 32 and keys[one.id] != keys[two.id]
    wanted = {
        (r.id, hmac.new(keys[r.id], p.encode(), hashlib.sha256).hexdigest())
        for r, people in ((one, ("p1", "p2")), (two, ("p2", "p3")))
        for p in people
    }
    assert stored == wanted
    assert store.matches(one, ["p2", "p1"]) and not store.matches(one, ["p1"])


def test_the_same_request_is_not_taken_in_twice(store):
    first = add(store)
    with pytest.raises(RequestError, match=f"{first.id}, received 2026-01-31, asks for the same"):
        add(store, ["p2", "p1"])
    store.refuse(first.id, "ann", "not them")
    assert add(store).state == State.received


def test_ids_and_subjects_of_the_same_names_are_two_requests(store):
    """Only the values are equal, and a person may be called like a row."""
    add(store), add(store, kind="ids"), add(store, ["p1"])
    assert len(store.all()) == 3


def test_the_search_for_the_same_request_does_not_grow_with_the_open_ones(store):
    """All requests ask for as many subjects, so that none can be told apart by their number."""
    add(store, ["q0", "q1"]), add(store, ["q2", "q3"])  # the first ones fill caches
    few = calls(lambda: add(store, ["q4", "q5"]))
    for i in range(60):
        add(store, [f"p{i}", f"r{i}"])
    assert calls(lambda: add(store, ["q6", "q7"])) < 1.2 * few
    with pytest.raises(RequestError, match="asks for the same"):
        add(store, ["r59", "p59"])


def test_two_operators_at_once_do_not_take_in_the_same_twice(url, at_once):
    code = """
store, said = Store.open(sys.argv[1]), []
for i in range(20):
    try:
        store.add(new_id(date.today()), "subjects", [f"p{i}"], received=date.today(), basis="", who="x")
        said.append(i)
    except RequestError as e:
        assert "asks for the same" in str(e) or "a request for the same" in str(e), e
print(*said)
"""
    won = [out.split() for out in at_once(code, url)]
    assert sorted(map(int, won[0] + won[1])) == list(range(20))
    store = Store.open(url)
    assert len(store.all()) == 20
    store.engine.dispose()


def test_a_refusal_is_final_gives_reasons_and_destroys_the_key(store):
    id_ = add(store).id
    with pytest.raises(RequestError, match="needs a reason"):
        store.refuse(id_, "ann", "")
    refused = store.refuse(id_, "ann", "a legal duty to keep them")
    assert refused.reason == "a legal duty to keep them" and not store.has_key(id_)
    assert not store.matches(refused, ["p1", "p2"])
    with pytest.raises(RequestError, match="nothing else: this state is final"):
        store.verify(id_, "ann", "", {})


def files_of(store: Store) -> bytes:
    """Return every byte of the database's files except for its write-ahead log."""
    if store.engine.dialect.name == "sqlite":
        return Path(store.engine.url.database).read_bytes()
    with store.engine.connect() as c:
        home = Path(c.execute(text("SHOW data_directory")).scalar_one())
    return b"".join(p.read_bytes() for p in sorted((home / "base").rglob("*")) if p.is_file())


def test_a_destroyed_key_is_in_no_file(store):
    """The search must find the rest of the request in the files, or else finding no key would prove nothing."""
    id_ = add(store, ["someone-secret"]).id
    with transaction(store.engine) as c:
        key = bytes(c.execute(select(KEYS.c.key)).scalar_one())
        own = c.execute(select(SUBJECTS.c.hmac)).scalar_one().encode()
        mark = c.execute(select(MARKS.c.mark)).scalar_one().encode()
    if store.engine.dialect.name == "postgresql":
        database.overwrite_deleted(store.engine)  # its checkpoint writes all pages to the files
    before = files_of(store)
    assert key in before and own in before and mark in before and b"someone-secret" not in before
    store.refuse(id_, "ann", "no")
    after = files_of(store)
    assert key not in after and own not in after and mark not in after and id_.encode() in after


def test_a_change_on_an_old_state_is_refused(store):
    from expunge.erasure.requests import move

    old = add(store)
    store.verify(old.id, "ann", "", {})
    stale = ErasureRequest(**{**old.__dict__, "state": State.verified, "verified": True})  # still of version 1
    with pytest.raises(RequestError, match="somebody else meanwhile"), transaction(store.engine) as c:
        move(c, stale, State.scheduled, "scheduling", "ben", "", {})
    assert store.get(old.id).state == State.verified and len(store.events(old.id)) == 2


@pytest.mark.slow
def test_changes_of_two_operators_at_once_are_all_kept(url, at_once):
    """Each process adds ten requests, and the first one creates the tables."""
    code = """
store = Store.open(sys.argv[1])
import os
for i in range(10):
    made = store.add(new_id(date.today()), "subjects", [f"{os.getpid()}-{i}"], received=date.today(), basis="", who="x")
    store.verify(made.id, "x", "", {})
"""
    at_once(code, url)
    store = Store.open(url)
    assert len(store.all([State.verified])) == 20
    with transaction(store.engine) as c:
        assert len(c.execute(select(EVENTS)).all()) == 40
    store.engine.dispose()


def test_two_operators_at_once_do_no_step_twice(url, at_once):
    """Two processes verify the same twelve requests. Each is verified by one of them, and the other gets an error."""
    store = Store.open(url)
    ids = [add(store, [f"p{i}"]).id for i in range(12)]
    code = """
store, won = Store.open(sys.argv[1]), []
for id_ in sys.argv[2:]:
    try:
        store.verify(id_, "x", "", {})
        won.append(id_)
    except RequestError as e:
        assert "meanwhile" in str(e) or "cannot become verified" in str(e), e
print(*won)
"""
    won = [out.split() for out in at_once(code, url, *ids)]
    assert sorted(won[0] + won[1]) == sorted(ids)
    assert [len(store.events(id_)) for id_ in ids] == [2] * 12
    store.engine.dispose()


def test_the_ledger_gets_every_event_once(url, at_once, tmp_path):
    store = Store.open(url)
    for i in range(6):
        store.verify(add(store, [f"p{i}"]).id, "ann", "seen", {"found": 1})
    code = "store = Store.open(sys.argv[1]); store.publish(Ledger(sys.argv[2]))"
    at_once(code, url, str(tmp_path / "ledger.jsonl"))
    ledger = Ledger(tmp_path / "ledger.jsonl")
    entries = ledger.entries()
    assert len({e.facts["event"] for e in entries}) == len(entries) == 12
    assert store.publish(ledger) == 0 and ledger.verify(store.entries()) == 12
    first = store.all()[0]
    kinds = [e.kind for e in entries if e.facts["about"] == first.id]
    assert kinds == ["intake", "verification"]
    content = json.dumps([e.facts for e in entries])
    assert first.digest in content and "p1" not in content
    store.engine.dispose()


def test_a_store_that_is_away_is_named_without_its_password(tmp_path):
    with pytest.raises(RequestError, match="cannot be opened") as e:
        Store.open("postgresql://me:geheim@127.0.0.1:1/none")
    assert "geheim" not in str(e.value)
    with pytest.raises(RequestError, match="not the URL"):
        Store.open("nothing")
    (tmp_path / "text.db").write_text("no database, and long enough to be taken for one" * 10)
    with pytest.raises(RequestError, match="cannot be opened"):
        Store.open(f"sqlite:///{tmp_path / 'text.db'}")
