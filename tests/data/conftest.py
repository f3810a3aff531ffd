"""Fixtures of a small dataset: the columns it is written from, and the dataset itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.data.dataset import Dataset
from expunge.data.writer import write_dataset
from tests.data.sources import arrays, source_of


@pytest.fixture
def data() -> dict:
    return arrays()


@pytest.fixture
def dataset(tmp_path: Path, data: dict) -> Dataset:
    write_dataset(tmp_path / "dataset", source_of(data), shard_rows=25)
    return Dataset(tmp_path / "dataset")
