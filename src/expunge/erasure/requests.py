"""Erasure requests: what was asked, when it is due, its state, and the events of its life."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, Select, delete, insert, select, update

from expunge.erasure import database
from expunge.erasure.database import EVENTS, KEY_BYTES, KEYS, PERSONAL, REQUESTS, SUBJECTS, transaction
from expunge.erasure.digests import digest_of_values, hmac_of
from expunge.erasure.repeats import keep_mark, mark_of, refuse_repeated
from expunge.erasure.states import MOST_MONTHS, State, check_move, due_date
from expunge.ledger.ledger import Ledger
from expunge.system.errors import RequestError

Kind = Literal["ids", "subjects", "classes", "labels"]
EVERY_EVENT = ("about", "who", "reason", "at")  # columns of an event that are facts of its ledger entry


@dataclass(frozen=True)
class ErasureRequest:
    """An `ErasureRequest` describes one request.

    `asked` is the number of ids, subjects, classes or new labels. `digest` is the HMAC-SHA256 of what was asked, under
    a key of its own. The key is destroyed when the request is final; then no guess can be tested against the digest.
    """

    id: str
    kind: Kind
    state: State
    version: int
    received: date
    months: int
    due: date
    verified: bool
    basis: str
    asked: int
    classes: tuple[int | str, ...]
    file: str | None
    digest: str
    batch: str | None
    reason: str
    told: bool

    @classmethod
    def of(cls, row: RowMapping) -> ErasureRequest:
        """Return the request of a database row."""
        values = {f.name: row[f.name] for f in fields(cls)}
        return cls(**{**values, "state": State(row["state"]), "classes": tuple(row["classes"])})


@dataclass(frozen=True)
class Event:
    """An event of a request or a batch. `entry`: hash of its ledger entry, None until it is published."""

    about: str
    number: int
    at: str
    who: str
    kind: str
    state: str | None
    reason: str
    facts: Mapping[str, Any]
    entry: str | None


class Store:
    """The requests in one database."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, url: str | None = None) -> Store:
        """Open the store at `url`, else at EXPUNGE_REQUESTS_URL, else in the workspace."""
        return cls(database.connect(url))

    def add(
        self,
        id_: str,
        kind: Kind,
        values: Sequence[str],
        *,
        received: date,
        basis: str,
        who: str,
        file: str | None = None,
        classes: Sequence[int | str] = (),
        most: bool = False,
    ) -> ErasureRequest:
        """Add a request that is due a month after `received`.

        `values` are ids, subjects or rows with new labels, of which only HMACs are kept. `most` says that the request
        may be for more than half of the rows. Raises RequestError if an open request asks for the same.
        """
        wanted = [str(c) for c in classes] if kind == "classes" else values
        key = secrets.token_bytes(KEY_BYTES)
        with transaction(self.engine) as c:
            mark = mark_of(c, kind, wanted)
            refuse_repeated(c, mark)
            row = {
                "id": id_, "kind": kind, "state": State.received, "version": 1, "received": received, "months": 1,
                "due": due_date(received, 1), "verified": False, "basis": basis, "asked": len(wanted),
                "classes": list(classes), "file": file, "digest": digest_of_values(wanted, key), "batch": None,
                "reason": "", "told": False,
            }  # fmt: skip
            c.execute(insert(REQUESTS).values(**row))
            c.execute(insert(KEYS).values(request=id_, key=key))
            keep_mark(c, id_, mark)
            if kind == "subjects":
                c.execute(insert(SUBJECTS), [{"request": id_, "hmac": hmac_of(v, key)} for v in values])
            facts = {"digest": row["digest"], "kind": kind, "asked": len(wanted), "received": received.isoformat()}
            facts |= {"more_than_half": True} if most else {}
            write_event(c, id_, 1, "intake", who, basis, facts, State.received)
        return self.get(id_)

    def get(self, id_: str) -> ErasureRequest:
        """Return the request with this id. Raises RequestError if there is none."""
        with transaction(self.engine) as c:
            return self._get(c, id_)

    def all(self, states: Iterable[State] = State) -> list[ErasureRequest]:
        """Return the requests in these states, ordered by due date."""
        with transaction(self.engine) as c:
            return self.listed(c, REQUESTS.c.state.in_(list(states)))

    def of_batch(self, batch: str) -> list[ErasureRequest]:
        """Return the requests of a batch, ordered by due date."""
        with transaction(self.engine) as c:
            return self.listed(c, REQUESTS.c.batch == batch)

    def matches(self, request: ErasureRequest, values: Sequence[str]) -> bool:
        """Return whether `values` are what was asked; False once the key is destroyed."""
        with transaction(self.engine) as c:
            key = self._key(c, request.id)
        return key is not None and hmac.compare_digest(digest_of_values(values, key), request.digest)

    def digest_under_key(self, id_: str, values: Sequence[str]) -> str:
        """Return `hmac-sha256:...` of `values` under the key of a request; "" once the key is destroyed."""
        with transaction(self.engine) as c:
            key = self._key(c, id_)
        return "" if key is None else digest_of_values(values, key)

    def has_key(self, id_: str) -> bool:
        """Return whether the key of a request still exists."""
        with transaction(self.engine) as c:
            return self._key(c, id_) is not None

    def verify(self, id_: str, who: str, reason: str, facts: Mapping[str, Any]) -> ErasureRequest:
        """Record that the requester's identity was confirmed and that the requested rows exist."""
        return self.change(id_, State.verified, "verification", who, reason, facts, verified=True)

    def refuse(self, id_: str, who: str, reason: str) -> ErasureRequest:
        """Refuse a request, which is final, and destroy its key. Raises RequestError while a run has it."""
        _need(reason, "a refusal needs a reason, because the requester must be told it")
        with transaction(self.engine) as c:
            request = self._get(c, id_)
            if request.state in (State.running, State.awaiting_approval):
                raise RequestError(f"request {id_} is {request.state}; reject the run first")
            refused = move(c, request, State.refused, "refusal", who, reason, {})
            destroy_key(c, id_)
        database.overwrite_deleted(self.engine)
        return refused

    def extend(self, id_: str, months: int, who: str, reason: str, today: date) -> ErasureRequest:
        """Set the due date to `months` (2 or 3) after receipt. The requester must be told before the first deadline."""
        _need(reason, "an extension needs a reason, because the requester must be told it")
        request = self.get(id_)
        if not request.months < months <= MOST_MONTHS:
            raise RequestError(
                f"request {id_} cannot be extended to {months} months after receipt; it has {request.months} now, and "
                f"at most {MOST_MONTHS} are allowed"
            )
        if today > request.due:
            raise RequestError(f"request {id_} was due on {request.due}: it can only be extended before that day")
        due = due_date(request.received, months)
        facts = {"due": due.isoformat(), "months": months}
        return self.change(id_, State.extended, "extension", who, reason, facts, months=months, due=due)

    def change(
        self, id_: str, new: State, kind: str, who: str, reason: str, facts: Mapping[str, Any], **columns: Any
    ) -> ErasureRequest:
        """Run `move` in a transaction of its own."""
        with transaction(self.engine) as c:
            return move(c, self._get(c, id_), new, kind, who, reason, facts, **columns)

    def events(self, about: str) -> list[Event]:
        """Return the events of a request or a batch, oldest first."""
        return self._events(select(EVENTS).where(EVENTS.c.about == about).order_by(EVENTS.c.number))

    def all_events(self) -> list[Event]:
        """Return all events, oldest first."""
        return self._events(select(EVENTS).order_by(EVENTS.c.id))

    def entries(self) -> list[str]:
        """Return the hashes of the ledger entries of published events."""
        with transaction(self.engine) as c:
            return [r.entry for r in c.execute(select(EVENTS.c.entry).where(EVENTS.c.entry.is_not(None)))]

    def publish(self, ledger: Ledger) -> int:
        """Append the unpublished events to the ledger in order, and return their number.

        Each event is appended once, even with concurrent callers or after an interrupted call.
        """
        with transaction(self.engine) as c:
            waiting = c.execute(select(EVENTS).where(EVENTS.c.entry.is_(None)).order_by(EVENTS.c.id)).mappings().all()
        if not waiting:
            return 0
        entries = ledger.append_events(
            (f"{row['about']}/{row['number']}", row["kind"], {k: row[k] for k in EVERY_EVENT} | row["facts"])
            for row in waiting
        )
        with transaction(self.engine) as c:
            for row, entry in zip(waiting, entries, strict=True):
                c.execute(update(EVENTS).where(EVENTS.c.id == row["id"]).values(entry=entry.hash))
        return len(waiting)

    def tell(self, id_: str) -> None:
        """Record that the recipients were notified."""
        with transaction(self.engine) as c:
            c.execute(update(REQUESTS).where(REQUESTS.c.id == id_).values(told=True))

    def listed(self, c: Connection, *where: ColumnElement[bool]) -> list[ErasureRequest]:
        """Return the requests that fulfil the conditions `where`, ordered by due date."""
        rows = c.execute(select(REQUESTS).where(*where).order_by(REQUESTS.c.due, REQUESTS.c.id)).mappings()
        return [ErasureRequest.of(row) for row in rows]

    def _events(self, wanted: Select[Any]) -> list[Event]:
        with transaction(self.engine) as c:
            return [Event(**{f.name: row[f.name] for f in fields(Event)}) for row in c.execute(wanted).mappings()]

    def _get(self, c: Connection, id_: str) -> ErasureRequest:
        row = c.execute(select(REQUESTS).where(REQUESTS.c.id == id_)).mappings().first()
        if row is None:
            raise RequestError(f"no request {id_!r}; run `expunge request list --all` to see all of them")
        return ErasureRequest.of(row)

    def _key(self, c: Connection, id_: str) -> bytes | None:
        row = c.execute(select(KEYS.c.key).where(KEYS.c.request == id_)).first()
        return None if row is None else bytes(row.key)


def new_id(received: date) -> str:
    """Return a new id, made of the date and a random part only."""
    return f"R-{received:%Y%m%d}-{secrets.token_hex(3)}"


def move(
    c: Connection,
    request: ErasureRequest,
    new: State,
    kind: str,
    who: str,
    reason: str,
    facts: Mapping[str, Any],
    **columns: Any,
) -> ErasureRequest:
    """Change the state of a request and write the event, within the caller's transaction.

    The state changes by compare-and-set on the version. Raises RequestError for a move that is not allowed, or if
    somebody else changed the request first.
    """
    check_move(request.id, request.state, new)
    if new == State.scheduled and not request.verified:
        raise RequestError(f"request {request.id} was never verified; run `expunge request verify {request.id}` first")
    if new in (State.refused, State.extended):
        columns["reason"] = reason
    version = request.version + 1
    mine = (REQUESTS.c.id == request.id) & (REQUESTS.c.version == request.version)
    done = c.execute(update(REQUESTS).where(mine).values(state=new, version=version, **columns))
    if done.rowcount != 1:
        raise RequestError(f"request {request.id} was changed by somebody else meanwhile; look at it again")
    write_event(c, request.id, version, kind, who, reason, facts, new)
    row = c.execute(select(REQUESTS).where(REQUESTS.c.id == request.id)).mappings().one()
    return ErasureRequest.of(row)


def write_event(
    c: Connection,
    about: str,
    number: int,
    kind: str,
    who: str,
    reason: str,
    facts: Mapping[str, Any],
    state: State | None = None,
) -> None:
    """Add the event `number` of the request or batch `about` to its history, with the present time."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    values = {"about": about, "number": number, "at": at, "who": who, "kind": kind, "reason": reason}
    c.execute(insert(EVENTS).values(**values, state=state, facts=dict(facts)))


def destroy_key(c: Connection, id_: str) -> None:
    """Delete the key, mark and HMACs of a request. Call `database.overwrite_deleted` after the transaction."""
    for table in PERSONAL:
        c.execute(delete(table).where(table.c.request == id_))


def _need(reason: str, message: str) -> None:
    if not reason.strip():
        raise RequestError(message)
