"""The two lists that a batch writes: the rows for the pipeline to forget, and the rows for the sweep to erase."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.erasure.batches import Batch
from expunge.system.paths import REQUESTS, WORK


def to_forget(batch: Batch) -> Path:
    """Return the path of the list for the pipeline."""
    return REQUESTS / f"{batch.id}.csv"


def to_erase(batch: Batch) -> Path:
    """Return the path of the list for the sweep. It is kept after the rows are erased, until the sweep is over."""
    return WORK / "erasure" / f"{batch.id}.json"


def wanted(batch: Batch) -> dict[str, Any]:
    """Return the content of the file `to_erase`.

    It holds `rows`, which are content digests by id, `people`, and `met`, which says whether the request in
    params.yaml has no rows left to forget.
    """
    found: dict[str, Any] = json.loads(to_erase(batch).read_text(encoding="utf-8"))
    return found
