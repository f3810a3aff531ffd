"""Read a data set by its torchvision name, or assert that it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.system.errors import DataError


def read(out: Path, name: str, root: Path, **options) -> Dataset:
    prepare(f"torchvision:{name}", out / "dataset", root=root, **options)
    return Dataset(out / "dataset")


def refused(out: Path, name: str, root: Path, message: str, **options) -> None:
    """Assert that reading fails with a message of one line and leaves no unfinished files."""
    with pytest.raises(DataError, match=message) as e:
        read(out, name, root, **options)
    assert "\n" not in str(e.value)
    assert not (out / "dataset").exists() and not list(out.rglob("*.tmp"))
