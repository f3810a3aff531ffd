"""Tests of requests and batches on machines whose clock jumps forwards or backwards. The ledger: test_soundness.py.

`jump` shifts the wall clock of this process. The process that holds a batch is another one, whose clock goes right.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta

import pytest
from sqlalchemy import update

from expunge.erasure import intake, leases
from expunge.erasure import requests as requests_module
from expunge.erasure.batches import Batches
from expunge.erasure.database import BATCHES, transaction
from expunge.erasure.requests import Store, new_id
from expunge.erasure.states import State
from expunge.system.errors import RequestError

DAY, YEAR = 86_400.0, 365 * 86_400.0
JUMPS = [-YEAR, *(pytest.param(jump, marks=pytest.mark.slow) for jump in (-DAY, DAY, YEAR))]
TODAY = date(2026, 3, 2)
# A process that opens a batch and renews its lease until it gets a line.
OWNER = """
import sys
from datetime import date
from expunge.erasure import leases
from expunge.erasure.batches import Batches
from expunge.erasure.requests import Store
leases.BEAT_SECONDS = 0.1
batches = Batches(Store.open(sys.argv[1]), "nightly")
batches.owner = sys.argv[2] + batches.owner
print(batches.claim(date(2026, 3, 2)).id, flush=True)
with batches.renewed_lease():
    sys.stdin.readline()
"""


@pytest.fixture
def jump(monkeypatch):
    """Return a function that shifts the wall clock of this process by seconds, as against the true time."""
    true_time, true_datetime = time.time, datetime

    def shift(seconds: float) -> None:
        class Clock(true_datetime):
            @classmethod
            def now(cls, tz=None):
                return true_datetime.now(tz) + timedelta(seconds=seconds)

        monkeypatch.setattr(time, "time", lambda: true_time() + seconds)
        monkeypatch.setattr(requests_module, "datetime", Clock)

    monkeypatch.setattr(leases, "WATCH_SECONDS", 1.0)
    return shift


def verified(store: Store, person: str, received: date) -> str:
    id_ = store.add(new_id(received), "subjects", [person], received=received, basis="", who="ann").id
    return store.verify(id_, "ann", "", {}).id


@contextmanager
def working(url: str, host: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds a batch; with `host`, its lease looks as if it were of another machine."""
    command = [sys.executable, "-c", OWNER, url, host]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None and owner.stdout.readline().startswith("B-")
            yield owner
        finally:
            owner.kill()


@pytest.mark.parametrize("host", ["", pytest.param("elsewhere-", marks=pytest.mark.slow)])
@pytest.mark.parametrize("seconds", JUMPS)
def test_a_living_owner_keeps_its_batch_whatever_the_clock_says(url, jump, host, seconds):
    store = Store.open(url)
    verified(store, "p1", TODAY)
    with working(url, host):
        jump(seconds)
        with pytest.raises(RequestError, match="is being carried out on"):
            Batches(store, "ben").claim(TODAY)
    store.engine.dispose()


@pytest.mark.parametrize("seconds", JUMPS)
def test_a_dead_owner_of_another_machine_keeps_nobody_out(store, jump, seconds):
    """A clock that was set back once kept everybody out until it had caught up."""
    verified(store, "p1", TODAY)
    batch = Batches(store, "nightly").claim(TODAY)
    with transaction(store.engine) as c:
        c.execute(update(BATCHES).values(owner="elsewhere:1:1"))
    jump(seconds)
    said: list[str] = []
    assert Batches(store, "ben", said.append).claim(TODAY).id == batch.id
    assert said == [f"{batch.id}: looking whether elsewhere still works on it"]


def test_a_clock_that_was_set_back_does_not_hide_a_request_that_is_due(store, jump):
    jump((datetime(2026, 3, 15) - datetime.now()).total_seconds())
    id_ = verified(store, "p1", date(2026, 2, 20))  # due on 20 March
    assert Batches(store, "nightly").claim(date(2025, 3, 15), within=4) is None
    batch = Batches(store, "nightly").claim(date(2025, 3, 15), within=5)
    assert batch is not None and store.get(id_).state == State.running


def test_a_request_of_a_day_that_the_clock_made_up_is_carried_out_at_once(store, jump):
    """It was taken in while the clock was a year ahead, so its deadline is a year too late."""
    jump((datetime(2027, 3, 15) - datetime.now()).total_seconds())
    verified(store, "p1", date(2027, 3, 15))
    jump((datetime(2026, 3, 15) - datetime.now()).total_seconds())
    assert Batches(store, "nightly").claim(date(2026, 3, 15), within=31) is not None


def test_a_day_before_the_clock_is_refused_with_the_way_out(store):
    with pytest.raises(RequestError, match=r"clock says 2025-03-02; give the day .*, or correct the clock"):
        intake.take_in(
            store, classes=[5], basis="", received=TODAY, today=TODAY - timedelta(days=365), who="ann"
        )  # fmt: skip
