"""The two lists that a batch writes for others: which rows the pipeline forgets, and which the sweep erases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.erasure.batches import Batch
from expunge.system.paths import REQUESTS, WORK


def to_forget(batch: Batch) -> Path:
    """What the pipeline is given."""
    return REQUESTS / f"{batch.id}.csv"


def to_erase(batch: Batch) -> Path:
    """What the sweep is given: outlives the rows themselves until the sweep is over."""
    return WORK / "erasure" / f"{batch.id}.json"


def wanted(batch: Batch) -> dict[str, Any]:
    """What stands in `to_erase`: `rows`, content digests by id; `people`; `met`, whether the request in params.yaml has
    nothing left to forget."""
    found: dict[str, Any] = json.loads(to_erase(batch).read_text(encoding="utf-8"))
    return found
