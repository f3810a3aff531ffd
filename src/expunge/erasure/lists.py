"""The two lists that a batch writes: the rows or new labels for the pipeline, and those for the sweep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expunge.erasure.batches import Batch
from expunge.erasure.requests import Kind
from expunge.erasure.selection import Selection
from expunge.system.paths import REQUESTS, WORK


def to_forget(batch: Batch) -> Path:
    """Return the path of the list for the pipeline."""
    return REQUESTS / f"{batch.id}.csv"


def to_erase(batch: Batch) -> Path:
    """Return the path of the list for the sweep. It is kept after the rows are erased, until the sweep is over."""
    return WORK / "erasure" / f"{batch.id}.json"


def content(selection: Selection, sample_ids: Sequence[str]) -> tuple[Kind, list[str]]:
    """Return kind and values of the list for the pipeline, as `intake.write_values` takes them."""
    if selection.labels is None:
        return "ids", [sample_ids[i] for i in np.flatnonzero(selection.forget).tolist()]
    return "labels", [json.dumps(pair, ensure_ascii=False) for pair in selection.labels.items()]


def wanted(batch: Batch) -> dict[str, Any]:
    """Return the content of the file `to_erase`.

    It holds `rows`, which are content digests by id, `people`, `labels`, which are class names by id if labels are
    corrected, and `met`, which says whether the request in params.yaml has no rows left to forget.
    """
    found: dict[str, Any] = json.loads(to_erase(batch).read_text(encoding="utf-8"))
    return found
