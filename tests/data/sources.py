"""Make sources of small colour images with subjects, and prepare datasets from sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.data.schema import RAW
from expunge.data.source import Source, array_batches
from expunge.system.errors import DataError

ROWS = 60
CLASSES = ("ant", "bee", "cat")


def arrays(rows: int = ROWS, seed: int = 0) -> dict:
    """Return random colour images of 5 x 4. Every fourth row is a test row, and labels and subjects repeat in turn."""
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (rows, 5, 4, 3), dtype=np.uint8),
        "labels": np.arange(rows, dtype=np.int32) % 3,
        "splits": ["test" if i % 4 == 3 else "train" for i in range(rows)],
        "ids": [f"row-{i:03d}" for i in range(rows)],
        "subjects": [None if i % 10 == 9 else f"person-{i % 6}" for i in range(rows)],
    }


def source_of(data: dict, batch: int = 7, names: tuple[str, ...] = CLASSES) -> Source:
    batches = array_batches(data["images"], data["labels"], data["splits"], data["ids"], data["subjects"], rows=batch)
    return Source("made", names, RAW, batches, has_subject=True)


def prepared(tmp_path: Path, source: str, **options) -> Dataset:
    prepare(source, tmp_path / "dataset", **options)
    return Dataset(tmp_path / "dataset")


def refused(tmp_path: Path, message: str, source: str, path: Path | None) -> None:
    with pytest.raises(DataError, match=message):
        prepare(source, tmp_path / "dataset", path=path)
    assert not (tmp_path / "dataset").exists()
