"""Any supported source becomes the canonical dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge.data.source import Source
from expunge.data.tombstones import Tombstones
from expunge.data.writer import write_dataset
from expunge.system.errors import DataError

SOURCES = ("fashion-mnist", "digits", "image-folder", "parquet", "npz", "text")


def prepare(
    source: str,
    out_dir: Path | str,
    *,
    path: Path | str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    raw_dir: Path | str = "data/raw",
) -> dict[str, Any]:
    """Read `source` and write the dataset directory `out_dir`; returns its manifest.

    `path` is the input of image-folder, parquet, npz and text, and optionally a directory with Fashion-MNIST's files.
    `test_fraction` and `seed` are used where the source has no test split of its own. Raises DataError.
    """
    opened = open_source(source, path, test_fraction, seed, raw_dir)
    return write_dataset(out_dir, opened, tombstones=Tombstones.near(out_dir))


def open_source(
    source: str, path: Path | str | None, test_fraction: float, seed: int, raw_dir: Path | str = "data/raw"
) -> Source:
    """The reader of `source`. Only the chosen reader and its libraries are imported."""
    if source == "fashion-mnist":
        from expunge.data.readers.fashion_mnist import read_fashion_mnist

        return read_fashion_mnist(path, raw_dir)
    if source == "digits":
        from expunge.data.readers.digits import read_digits

        return read_digits(test_fraction, seed)
    if source not in SOURCES:
        raise DataError(f"unknown data source {source!r}; known are {', '.join(SOURCES)}")
    if path is None:
        raise DataError(f"source {source} needs a path (data.path in params.yaml)")
    if not Path(path).exists():
        raise DataError(f"{path}: no such file or directory (data.path in params.yaml)")
    if source == "image-folder":
        from expunge.data.readers.image_folder import read_image_folder

        return read_image_folder(Path(path), test_fraction, seed)
    if source == "parquet":
        from expunge.data.readers.parquet import read_parquet

        return read_parquet(Path(path), test_fraction, seed)
    if source == "text":
        from expunge.data.readers.text import read_text

        return read_text(Path(path), test_fraction, seed)
    from expunge.data.readers.npz import read_npz

    return read_npz(Path(path), test_fraction, seed)
