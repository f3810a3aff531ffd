"""Reading a split: which dataset positions are retained, forgotten, and which test rows belong to forgotten classes."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from expunge.files import read_json, read_manifest

ASSIGNMENT = "assignment.parquet"
REQUEST = "request.json"


class Assignment:
    """`part (n,)` per dataset row and the positions of each part. Raises ManifestError for a damaged split."""

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        read_manifest(self.directory)
        self.request: dict[str, Any] = read_json(self.directory / REQUEST)

    @cached_property
    def part(self) -> np.ndarray:
        """One of retain, forget, test_retain, test_forget per dataset row, in dataset order."""
        column = pq.read_table(self.directory / ASSIGNMENT, columns=["part"])["part"]
        return np.array(column.to_pylist(), dtype="U11")

    @property
    def retain(self) -> np.ndarray:
        return np.flatnonzero(self.part == "retain")

    @property
    def forget(self) -> np.ndarray:
        return np.flatnonzero(self.part == "forget")
