"""Fill a request store and a ledger with many requests, and carry out a batch with many of them.

What is completed already is written in bulk; what a test measures is done by the code of the package.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from datetime import date
from pathlib import Path

from sqlalchemy import insert

from expunge.commands import registry, request
from expunge.erasure import history
from expunge.erasure.batches import Batches
from expunge.erasure.database import EVENTS, REQUESTS, transaction
from expunge.erasure.requests import Store
from expunge.erasure.states import State
from expunge.ledger.clock import set_back
from expunge.ledger.keys import signing_key
from expunge.ledger.ledger import Entry, Ledger
from expunge.ledger.signed_head import HeadFiles
from tests.erasure.promoted_batch import finish, promoted
from tests.sweep import people_workspace

LIFE = ("intake", "verification", "scheduling", "run", "verdict", "approval", "completion")
AT = "2026-01-05T00:00:00+00:00"
FINISH = "to the certificates"
ROWS_EACH = 10  # rows of a person


def calls(work: Callable[[], object]) -> int:
    """Return how many functions `work` calls, those written in C included."""
    count = 0

    def called(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def completed(root: Path, store: Store, number: int) -> None:
    """Write `number` completed requests with their events, and the signed ledger with an entry for every event."""
    rows: list[dict[str, object]] = []
    events: list[dict[str, object]] = []
    lines, last = list[str](), None
    for i in range(number):
        id_ = f"R-20260105-{i:06x}"
        rows.append(
            {
                "id": id_, "kind": "subjects", "state": State.completed, "version": len(LIFE),
                "received": date(2026, 1, 5), "months": 1, "due": date(2026, 2, 5), "verified": True, "basis": "",
                "asked": 1, "classes": [], "file": None, "digest": f"hmac-sha256:{i:064x}", "batch": "B-1",
                "reason": "", "told": True,
            }
        )  # fmt: skip
        for step, kind in enumerate(LIFE, 1):
            event = {"about": id_, "at": AT, "who": "ann", "reason": ""}
            last = Entry.after(last, kind, {**event, "event": f"{id_}/{step}"}, AT)
            lines.append(last.line)
            events.append({**event, "number": step, "kind": kind, "state": None, "facts": {}, "entry": last.hash})
    with transaction(store.engine) as c:
        c.execute(insert(REQUESTS), rows)
        c.execute(insert(EVENTS), events)
    ledger = root / "ledger.jsonl"
    ledger.write_text("".join(lines))
    head = HeadFiles(ledger)
    assert last is not None
    head.announce(last, signing_key(root))
    head.confirm()


def workspace(root: Path, done: int, waiting: int) -> tuple[Store, str]:
    """Return the store, and its URL, of a workspace with `done` completed requests and four people per waiting one."""
    people = 4 * waiting
    people_workspace.workspace(root, [0], rows=people * ROWS_EACH, people=people, shard=people)
    url = f"sqlite:///{root / 'records/requests.db'}"
    store = Store.open(url)
    completed(root, store, done)
    return store, url


def steps(root: Path, store: Store, url: str, waiting: int) -> dict[str, Callable[[], object]]:
    """Return what operators do, in order: take in and verify `waiting` requests, look at them, carry them out."""
    ledger = Ledger(root / "ledger.jsonl")

    def quietly(command: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            with chdir(root), redirect_stdout(io.StringIO()):
                command()

        return run

    return {
        "to a batch": lambda: promoted(store, root, [[i] for i in range(waiting)]),
        "publish": lambda: store.publish(ledger),
        "request list --all": quietly(lambda: request.list_requests(all_=True)),
        "request show": quietly(lambda: request.show("R-20260105-000000")),
        "ledger verify": quietly(lambda: registry.verify_ledger(known=None, key=None)),
        "ledger show": quietly(registry.show_ledger),
        "store and ledger agree": quietly(lambda: history.check(store, ledger)),
        "clock": lambda: set_back(ledger.entries()),
        FINISH: lambda: _completed_now(root, store, url, waiting),
    }


def _completed_now(root: Path, store: Store, url: str, waiting: int) -> None:
    assert finish(root, url) == "completed"
    assert len(Batches(store, "x").requests(Batches(store, "x").closed()[-1])) == waiting
