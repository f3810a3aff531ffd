"""Batches: the requests that one run carries out together, and the step it has reached. At most one batch is open.

The process that works on a batch holds a lease, which it renews for as long as it lives. When the process dies, another
one takes the batch over: immediately on the same machine, after the lease has expired on another (`leases`). Each
update compares the version of the batch (optimistic locking), so a process that has lost the batch cannot write to it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import date, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, RowMapping, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from expunge.erasure import database, leases
from expunge.erasure.database import BATCHES, EVENTS, REQUESTS, transaction
from expunge.erasure.leases import Standing
from expunge.erasure.requests import ErasureRequest, Store, destroy_key, move, write_event
from expunge.erasure.states import FINAL, WAITING, State
from expunge.system.errors import RequestError


class Step(StrEnum):
    """The step of a batch that is carried out next."""

    prepare = "prepare"
    run = "run"
    judge = "judge"
    approval = "approval"
    promote = "promote"
    collect = "collect"
    sweep = "sweep"
    certify = "certify"
    closed = "closed"


@dataclass(frozen=True)
class Batch:
    """A `Batch` describes one batch of requests.

    `facts` are the results of its steps, for later steps and for certificates, as JSON without ids of rows or of
    people. `until` is the time at which the lease of `owner` expires, in seconds since 1970.
    """

    id: str
    open: bool | None
    step: Step
    version: int
    owner: str | None
    until: float
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, row: RowMapping) -> Batch:
        """Return the batch of a database row."""
        return cls(**{**{f.name: row[f.name] for f in fields(cls)}, "step": Step(row["step"])})


class Batches:
    """The batches of a request store, as one process sees them."""

    def __init__(self, store: Store, who: str, log: Callable[[str], None] = lambda _: None) -> None:
        self.store, self.who, self.log = store, who, log
        self.owner = leases.owner_name()

    def current(self) -> Batch | None:
        """Return the open batch, or None."""
        with transaction(self.store.engine) as c:
            return _current(c)

    def closed(self) -> list[Batch]:
        """Return the closed batches, ordered by id."""
        with transaction(self.store.engine) as c:
            rows = c.execute(select(BATCHES).where(BATCHES.c.open.is_(None)).order_by(BATCHES.c.id)).mappings()
            return [Batch.of(row) for row in rows]

    def requests(self, batch: Batch) -> list[ErasureRequest]:
        """Return the requests of `batch`, ordered by due date."""
        return self.store.of_batch(batch.id)

    def claim(self, today: date, within: int | None = None) -> Batch | None:
        """Take over the open batch, or open one with every verified request; None if no request is waiting.

        Requests that correct labels and those that erase rows are not carried out together.

        `within`: open one only if a waiting request is due within so many days. Where only time can tell whether the
        process that holds the batch lives, this waits for WATCH_SECONDS. Raises RequestError if another live process
        holds the batch, or opened one at the same moment.
        """
        try:
            taken = self._claim(today, within)
            if isinstance(taken, Batch) and taken.owner != self.owner:
                self.log(f"{taken.id}: looking whether {_host(taken)} still works on it")
                time.sleep(leases.WATCH_SECONDS)
                taken = self._claim(today, within, taken)
            return taken
        except IntegrityError:
            raise RequestError("somebody else started a run at the same moment, so none was started here") from None

    def _claim(self, today: date, within: int | None, watched: Batch | None = None) -> Batch | None:
        """Claim as `claim` does. If the lease is doubtful, return the batch as it is, with its present owner.

        `watched`: the batch as it was WATCH_SECONDS ago, when its lease was doubtful.
        """
        with transaction(self.store.engine) as c:
            found = _current(c)
            if found is None:
                return self._open(c, today, within)
            standing = leases.standing(found.owner, found.until, self.owner)
            if standing == Standing.doubtful and watched is None:
                return found
            renewed = watched is not None and (found.owner, found.until) != (watched.owner, watched.until)
            if standing == Standing.held or (standing == Standing.doubtful and renewed):
                raise RequestError(
                    f"run {found.id} is being carried out on {_host(found)}, step {found.step}; wait for it"
                )
            values = {"owner": self.owner, "until": leases.expiry(), "version": found.version + 1}
            return self._set(c, found, **values)

    def at(
        self,
        batch: Batch,
        step: Step,
        facts: Mapping[str, Any],
        moves: State | None = None,
        kind: str = "",
        reason: str = "",
        who: str | None = None,
        event_facts: Mapping[str, Any] | None = None,
    ) -> Batch:
        """Record that the batch is at `step`, and add `facts`, in one transaction.

        With `moves`, its requests move to that state in the same transaction, and `kind` names their events; a final
        state destroys their keys. Without `moves`, a `kind` writes one event of the batch. `event_facts` are the facts
        of the events; `event_facts["of"]` has those of single requests, by id. Raises RequestError if the batch was
        taken over.
        """
        with transaction(self.store.engine) as c:
            values = {"step": step, "facts": {**batch.facts, **facts}, "version": batch.version + 1}
            if step == Step.closed:
                values |= {"open": None, "owner": None}
            after = self._set(c, batch, **values)
            if moves is not None:
                self._move(c, batch, moves, kind, reason, who or self.who, event_facts or {})
            elif kind:
                write_event(c, batch.id, after.version, kind, who or self.who, reason, event_facts or {})
        if moves in FINAL:
            database.overwrite_deleted(self.store.engine)
        return after

    def release(self, batch: Batch) -> None:
        """Give up the lease, so that another process can continue the batch."""
        with transaction(self.store.engine) as c:
            c.execute(update(BATCHES).where(_mine(batch)).values(owner=None, version=batch.version + 1))

    @contextmanager
    def renewed_lease(self) -> Iterator[None]:
        """Renew the lease from a thread for as long as the body runs."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(leases.BEAT_SECONDS):
                # The lease lasts ten beats, so it survives a short outage of the database.
                with suppress(RequestError), transaction(self.store.engine) as c:
                    c.execute(update(BATCHES).where(BATCHES.c.owner == self.owner).values(until=leases.expiry()))

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _open(self, c: Connection, today: date, within: int | None) -> Batch | None:
        waiting = self.store.listed(c, REQUESTS.c.state.in_(list(WAITING)) & REQUESTS.c.verified)
        # One run either forgets rows or corrects labels. The most urgent request decides, the others wait.
        waiting = [r for r in waiting if (r.kind == "labels") == (waiting[0].kind == "labels")]
        # A clock that is behind must not hide that a request is due, so a day that an event has seen has come.
        latest = max(today, _latest_day(c) or today)
        if within is not None and not any(r.due <= latest + timedelta(days=within) for r in waiting):
            waiting = []
        if not waiting:
            return None
        id_ = f"B-{today:%Y%m%d}-{secrets.token_hex(3)}"
        values = {"id": id_, "open": True, "step": Step.prepare, "version": 1, "owner": self.owner, "facts": {}}
        c.execute(insert(BATCHES).values(**values, until=leases.expiry()))
        for request in waiting:
            if request.state != State.scheduled:
                request = move(c, request, State.scheduled, "scheduling", self.who, "", {"batch": id_})
            move(c, request, State.running, "run", self.who, "", {"batch": id_}, batch=id_)
        return _current(c)

    def _set(self, c: Connection, batch: Batch, **values: Any) -> Batch:
        if c.execute(update(BATCHES).where(_mine(batch)).values(**values)).rowcount != 1:
            raise RequestError(f"run {batch.id} was taken over by somebody else, so this process stops here")
        return Batch.of(c.execute(select(BATCHES).where(BATCHES.c.id == batch.id)).mappings().one())

    def _move(
        self, c: Connection, batch: Batch, new: State, kind: str, reason: str, who: str, event_facts: Mapping[str, Any]
    ) -> None:
        for request in self.store.listed(c, REQUESTS.c.batch == batch.id):
            facts = {"batch": batch.id, **event_facts.get("of", {}).get(request.id, {})}
            facts |= {k: v for k, v in event_facts.items() if k != "of"}
            # A request that returns to "scheduled" waits for the next batch.
            columns = {"batch": None} if new == State.scheduled else {}
            move(c, request, new, kind, who, reason, facts, **columns)
            if new in FINAL:
                destroy_key(c, request.id)


def _current(c: Connection) -> Batch | None:
    row = c.execute(select(BATCHES).where(BATCHES.c.open.is_(True))).mappings().first()
    return None if row is None else Batch.of(row)


def _mine(batch: Batch) -> Any:
    """Return the condition that the stored batch still has the version of `batch`, for compare-and-set."""
    return (BATCHES.c.id == batch.id) & (BATCHES.c.version == batch.version)


def _latest_day(c: Connection) -> date | None:
    """Return the latest day on which an event was recorded, None without events."""
    at = c.execute(select(func.max(EVENTS.c.at))).scalar()
    return None if at is None else date.fromisoformat(at[:10])


def _host(batch: Batch) -> str:
    return str(batch.owner).partition(":")[0]
