"""Tests of batches of requests and their leases, on SQLite and PostgreSQL, with processes that die or start at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import update

from expunge.erasure import leases
from expunge.erasure.batches import Batches, Step
from expunge.erasure.database import BATCHES, transaction
from expunge.erasure.requests import Store, new_id
from expunge.erasure.states import State, due_date
from expunge.system.errors import RequestError
from tests.erasure.promoted_batch import finish, promoted
from tests.sweep import people_workspace

TODAY = date(2026, 3, 2)


def verified(store: Store, *people: str, received: date = date(2026, 2, 20)) -> str:
    id_ = store.add(new_id(received), "subjects", list(people), received=received, basis="", who="ann").id
    return store.verify(id_, "ann", "", {}).id


def owned_by(store: Store, owner: str | None) -> None:
    with transaction(store.engine) as c:
        c.execute(update(BATCHES).values(owner=owner))


def test_verified_requests_go_into_one_batch(store):
    first, second = verified(store, "p1"), verified(store, "p2")
    unverified = store.add(new_id(TODAY), "subjects", ["p3"], received=TODAY, basis="", who="ann").id
    batches = Batches(store, "nightly")
    batch = batches.claim(TODAY)
    assert {r.id for r in batches.requests(batch)} == {first, second} and batch.step == Step.prepare
    assert store.get(first).state == State.running and store.get(unverified).state == State.received
    assert [e.kind for e in store.events(first)] == ["intake", "verification", "scheduling", "run"]
    # A request that is verified during the batch waits for the next one.
    late = verified(store, "p4")
    again = batches.claim(TODAY)
    assert again.id == batch.id and store.get(late).state == State.verified


def test_a_run_corrects_labels_or_erases_rows_and_the_most_urgent_request_decides(store):
    erased = verified(store, "p1", received=date(2026, 2, 25))
    for day in (20, 27):
        request = store.add(
            new_id(TODAY), "labels", [f'["r{day}", "3"]'], received=date(2026, 2, day), basis="", who="a"
        )
        store.verify(request.id, "ann", "", {})
    batches = Batches(store, "nightly")
    batch = batches.claim(TODAY)
    assert [r.kind for r in batches.requests(batch)] == ["labels", "labels"]
    assert store.get(erased).state == State.verified
    batches.at(batch, Step.closed, {}, State.refused, "refusal", "no method")
    assert [r.id for r in batches.requests(batches.claim(TODAY))] == [erased]


def test_nothing_is_started_before_something_is_due(store):
    today = datetime.now(UTC).date()
    batches = Batches(store, "nightly")
    assert batches.claim(today) is None
    received = today - timedelta(days=10)
    verified(store, "p1", received=received)
    left = (due_date(received, 1) - today).days
    assert batches.claim(today, within=left - 1) is None and batches.current() is None
    verified(store, "p2", received=today)
    assert len(batches.requests(batches.claim(today, within=left))) == 2  # the batch also takes the one that is not due


def test_a_living_owner_keeps_its_batch(store):
    verified(store, "p1")
    batch = Batches(store, "nightly").claim(TODAY)
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        owned_by(store, f"{socket.gethostname()}:{living.pid}:1")
        with pytest.raises(RequestError, match=f"run {batch.id} is being carried out on {socket.gethostname()}"):
            Batches(store, "ben").claim(TODAY)
    finally:
        living.communicate(b"\n")
    assert Batches(store, "ben").claim(TODAY).id == batch.id  # the owner is dead, so nobody waits for its lease


def test_another_machine_is_waited_for(store, monkeypatch):
    monkeypatch.setattr(leases, "WATCH_SECONDS", 0.05)
    verified(store, "p1")
    batch = Batches(store, "nightly").claim(TODAY)
    owned_by(store, "elsewhere:1:1")
    with pytest.raises(RequestError, match="carried out on elsewhere"):
        Batches(store, "ben").claim(TODAY)
    with transaction(store.engine) as c:
        c.execute(update(BATCHES).values(until=time.time() - 1))
    assert Batches(store, "ben").claim(TODAY).id == batch.id


def test_a_process_that_lost_the_batch_writes_nothing(store):
    id_ = verified(store, "p1")
    slow, quick = Batches(store, "slow"), Batches(store, "quick")
    lost = slow.claim(TODAY)
    taken = quick.claim(TODAY)  # both have this process number, so the first owner counts as dead
    with pytest.raises(RequestError, match="taken over by somebody else"):
        slow.at(lost, Step.approval, {}, State.awaiting_approval, "verdict")
    assert store.get(id_).state == State.running
    assert quick.at(taken, Step.run, {"a": 1}).facts == {"a": 1}


def test_the_lease_is_renewed_while_work_goes_on(store, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    verified(store, "p1")
    batches = Batches(store, "nightly")
    batch = batches.claim(TODAY)
    with transaction(store.engine) as c:
        c.execute(update(BATCHES).values(until=0.0))
    with batches.renewed_lease():
        end = time.monotonic() + 10
        while batches.current().until < time.time() and time.monotonic() < end:
            time.sleep(0.05)
    assert batches.current().until > time.time() + 500
    assert batches.at(batch, Step.run, {}).step == Step.run  # renewing the lease does not block a step


def test_a_closed_batch_makes_room_and_destroys_keys(store):
    id_ = verified(store, "p1")
    batches = Batches(store, "nightly")
    batch = batches.claim(TODAY)
    event_facts = {"of": {id_: {"certificate": "sha256:1"}}}
    batches.at(batch, Step.closed, {}, State.completed, "completion", event_facts=event_facts)
    assert store.get(id_).state == State.completed and not store.has_key(id_)
    assert store.events(id_)[-1].facts == {"batch": batch.id, "certificate": "sha256:1"}
    assert batches.current() is None and [b.id for b in batches.closed()] == [batch.id]
    verified(store, "p2")
    assert batches.claim(TODAY).id != batch.id


def test_two_processes_that_start_at_once_open_one_batch(url, at_once):
    """All processes find no batch. One of them opens it, and the others get an error."""
    store = Store.open(url)
    ids = [verified(store, f"p{i}") for i in range(4)]
    code = """
from expunge.erasure.batches import Batches
try:
    print("started", Batches(Store.open(sys.argv[1]), "x").claim(date(2026, 3, 2)).id)
except RequestError as e:
    print("told", e)
sys.stdout.flush()
sys.stdin.readline()  # alive until both are done
"""
    out = at_once(code, url, processes=3)
    started = [line for line in out if line.startswith("started")]
    assert len({line.split()[1] for line in started}) == 1
    # A batch whose process ended early may be taken over, but no second batch is opened.
    assert [len(store.events(id_)) for id_ in ids] == [4] * 4
    assert os.getpid() and len(Batches(store, "x").closed()) == 0
    store.engine.dispose()


def test_a_batch_is_finished_on_either_database(url, tmp_path):
    """A promoted batch is swept and certified, its keys are destroyed, and its requests are completed."""
    root = people_workspace.workspace(tmp_path / "workspace", [5])
    store = Store.open(url)
    _, requests = promoted(store, root)
    assert finish(root, url) == "completed" and finish(root, url) == "nothing to do"
    for request in requests:
        assert store.get(request.id).state == State.completed and store.get(request.id).told
        assert (root / "records/certificates" / request.id / "certificate.json").is_file()
        assert not store.has_key(request.id) and not (root / request.file).exists()
    store.engine.dispose()
