"""Which requests ended and were not dealt with yet, so that a process that is killed in between leaves none out.

Certificates are attached to registered versions, and events are emitted, after the requests are final in the store. A
file names the requests that were open when a run began, until a run has dealt with those of them that ended.
"""

from __future__ import annotations

import json

from expunge.erasure.requests import ErasureRequest, Store
from expunge.erasure.states import FINAL, OPEN
from expunge.system.files import read_json, write_durable
from expunge.system.paths import WORK

FILE = WORK / "requests-to-end.json"


def watch(store: Store) -> None:
    """Record the requests that are open now, beside those that are recorded already. Call it before a run."""
    known = set(read_json(FILE)) if FILE.is_file() else set()
    write_durable(FILE, json.dumps(sorted(known | {r.id for r in store.all(OPEN)})).encode())


def ended(store: Store) -> list[ErasureRequest]:
    """Return the recorded requests that are final now, ordered by id."""
    known = set(read_json(FILE)) if FILE.is_file() else set()
    return sorted((r for r in store.all(FINAL) if r.id in known), key=lambda r: r.id)


def settle() -> None:
    """Forget the recorded requests: those that ended were dealt with, and `watch` records the others again."""
    FILE.unlink(missing_ok=True)
