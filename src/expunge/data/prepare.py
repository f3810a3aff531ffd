"""Convert any supported source to the canonical dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.data.canaries import Planter
from expunge.data.corrected import CorrectedLabels
from expunge.data.readers.digits import read_digits
from expunge.data.readers.emoji import read_emoji
from expunge.data.readers.fashion_mnist import read_fashion_mnist
from expunge.data.readers.fortunes import read_fortunes
from expunge.data.readers.huggingface import read_huggingface
from expunge.data.readers.image_folder import read_image_folder
from expunge.data.readers.npz import read_npz
from expunge.data.readers.parquet import read_parquet
from expunge.data.readers.text import read_text
from expunge.data.source import Source
from expunge.data.tombstones import Tombstones
from expunge.data.unseen import set_aside
from expunge.data.writer import write_dataset
from expunge.system import plugins
from expunge.system.errors import DataError

SOURCES = ("fashion-mnist", "digits", "fortunes", "emoji", "image-folder", "parquet", "npz", "text")
NAMED = ("torchvision:", "hf:")  # followed by the name of a data set
# A reader of another package, declared in the entry point group `expunge.readers`, is called as
# `read(path=, test_fraction=, seed=)`; `path` is data.path of params.yaml, or None.
Reader = Callable[..., Source]


def prepare(
    source: str,
    out_dir: Path | str,
    *,
    path: Path | str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    raw_dir: Path | str = "data/raw",
    root: Path | str | None = None,
    download: bool = False,
    columns: Mapping[str, str] | None = None,
    canaries: int = 0,
    unseen: float = 0.0,
) -> dict[str, Any]:
    """Read `source`, write the dataset directory `out_dir` and return its manifest.

    `path` is the input of image-folder, parquet, npz and text. For fashion-mnist, fortunes and emoji it is an optional
    directory with their files; for a reader of another package it is optional too. `root` is the directory with the
    files of torchvision:NAME (default: `raw_dir`/torchvision), and `download` allows downloading them there. `columns`
    names the columns of hf:NAME. `test_fraction` and `seed` define the test split if the source has none. `canaries`
    is the number of mislabelled copies of training rows to plant. `unseen` is the share of the training rows to set
    aside, on which no model is trained. Both are drawn with `seed`. Raises DataError for an unknown or invalid source,
    and for canaries in a workspace in which rows were erased.
    """
    if source.startswith(NAMED):
        opened = open_named(source, root, download, columns, test_fraction, seed, raw_dir)
    else:
        opened = open_source(source, path, test_fraction, seed, raw_dir)
    if unseen:
        opened = replace(opened, batches=set_aside(opened.batches, unseen, seed))
    tombstones = Tombstones.near(out_dir)
    if canaries and tombstones is not None:
        raise DataError(
            "data.canaries: rows were erased in this workspace, and canaries would copy rows again; run the audit "
            "in another workspace, or set data.canaries to 0"
        )
    planter = Planter(canaries, len(opened.class_names), seed) if canaries else None
    package = plugins.package_of("readers", source) if by_package(source) else None
    corrected = CorrectedLabels.near(out_dir)
    return write_dataset(out_dir, opened, tombstones=tombstones, corrected=corrected, planter=planter, package=package)


def by_package(source: str) -> bool:
    """Whether a reader of another package reads `source`. A package cannot replace a built-in source."""
    return source not in SOURCES and not source.startswith(NAMED) and source in plugins.names("readers")


def open_source(
    source: str, path: Path | str | None, test_fraction: float, seed: int, raw_dir: Path | str = "data/raw"
) -> Source:
    """Open `source` with its reader. Raises DataError for an unknown source, and for a `path` that is missing."""
    if source == "fashion-mnist":
        return read_fashion_mnist(path, raw_dir)
    if source == "digits":
        return read_digits(test_fraction, seed)
    if source == "fortunes":
        return read_fortunes(path, raw_dir, test_fraction, seed)
    if source == "emoji":
        return read_emoji(path, raw_dir, test_fraction, seed)
    if by_package(source):
        return _open_installed(source, path, test_fraction, seed)
    if source not in SOURCES:
        names = ", ".join((*SOURCES, *(f"{prefix}NAME" for prefix in NAMED), *plugins.names("readers")))
        raise DataError(f"unknown data source {source!r}; choose one of {names}")
    if path is None:
        raise DataError(f"source {source} needs a path (data.path in params.yaml)")
    if not Path(path).exists():
        raise DataError(f"{path}: no such file or directory (data.path in params.yaml)")
    if source == "image-folder":
        return read_image_folder(Path(path), test_fraction, seed)
    if source == "parquet":
        return read_parquet(Path(path), test_fraction, seed)
    if source == "text":
        return read_text(Path(path), test_fraction, seed)

    return read_npz(Path(path), test_fraction, seed)


def _open_installed(source: str, path: Path | str | None, test_fraction: float, seed: int) -> Source:
    if path is not None and not Path(path).exists():
        raise DataError(f"{path}: no such file or directory (data.path in params.yaml)")
    reader: Reader = plugins.load("readers", source, None)
    opened = reader(path=None if path is None else Path(path), test_fraction=test_fraction, seed=seed)
    if not isinstance(opened, Source):
        raise DataError(
            f"reader {source!r} of {plugins.package_of('readers', source)} must return an "
            f"expunge.data.source.Source, but it returned a {type(opened).__name__}"
        )
    return replace(opened, name=source)


def open_named(
    source: str,
    root: Path | str | None,
    download: bool,
    columns: Mapping[str, str] | None,
    test_fraction: float,
    seed: int,
    raw_dir: Path | str = "data/raw",
) -> Source:
    """Open a data set by its name, torchvision:NAME or hf:NAME."""
    if source.startswith("hf:"):
        return read_huggingface(source, Path(raw_dir) / "huggingface", columns, test_fraction, seed)
    from expunge.data.readers.named import read_named

    where = Path(root) if root is not None else Path(raw_dir) / "torchvision"
    return read_named(source, where, download, test_fraction, seed)
