"""Read a folder of images with one folder per class, optionally below `train/` and `test/` or `val/`.

The bytes of the image files are stored unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from expunge.data.limits import SUFFIXES
from expunge.data.schema import ENCODED
from expunge.data.source import Batch, Source, split_names, stratified_test_rows
from expunge.system.errors import DataError

BATCH = 64


def read_image_folder(root: Path, test_fraction: float = 0.2, seed: int = 0) -> Source:
    """Read the images below `root`; ids are paths relative to `root`, class names are those of the class folders.

    If `root` has a folder `train` and one of `test` and `val`, these are the training and the test split. Otherwise a
    seeded stratified `test_fraction` is drawn. Images may be at any depth below their class folder. Hidden files are
    ignored. Raises DataError, which names the file, for other files that are not images, and for images outside a class
    folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: is not a directory; image-folder reads a directory with one folder per class")
    test = "test" if (root / "test").is_dir() else "val"
    given = (root / "train").is_dir() and (root / test).is_dir()
    folders = {"train": "train", test: "test"} if given else {"": ""}
    files: list[tuple[Path, str, str]] = []  # path, class name, split or ""
    for folder, split in folders.items():
        files += [(f, _class_of(f, root / folder), split) for f in image_files(root / folder)]
    if given:
        _refuse_strays(root, folders)
    if not files:
        raise DataError(f"{root}: contains no images ({', '.join(SUFFIXES)})")
    names = tuple(sorted({name for _, name, _ in files}))
    index = {name: i for i, name in enumerate(names)}
    labels = np.array([index[name] for _, name, _ in files], dtype=np.int32)
    splits = [s for _, _, s in files] if given else split_names(stratified_test_rows(labels, test_fraction, seed))
    ids = [f.relative_to(root).as_posix() for f, _, _ in files]

    def batches() -> Iterator[Batch]:
        for i in range(0, len(files), BATCH):
            cut = slice(i, i + BATCH)
            yield Batch(ids[cut], labels[cut], splits[cut], [_read(f) for f, _, _ in files[cut]])

    return Source("image-folder", names, ENCODED, batches())


def image_files(top: Path) -> list[Path]:
    """List the image files below `top`, sorted by path, so that the order does not depend on the file system."""
    found = []
    for file in sorted(top.rglob("*"), key=lambda p: p.relative_to(top).as_posix()):
        if any(part.startswith(".") for part in file.relative_to(top).parts) or file.is_dir():
            continue
        if file.suffix.lower() not in SUFFIXES:
            raise DataError(f"{file}: is not an image ({', '.join(SUFFIXES)}); move it out of the data directory")
        found.append(file)
    return found


def _class_of(file: Path, top: Path) -> str:
    parts = file.relative_to(top).parts
    if len(parts) < 2:
        raise DataError(f"{file}: is not in a class folder; move it to {top / 'CLASS' / file.name}")
    return parts[0]


def _refuse_strays(root: Path, folders: Collection[str]) -> None:
    for entry in sorted(root.iterdir()):
        if entry.name not in folders and not entry.name.startswith("."):
            beside = " and ".join(f"{folder}/" for folder in folders)
            raise DataError(f"{entry}: is outside {beside}; move it into one of them or out of the data directory")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as e:
        raise DataError(f"{file}: cannot be read ({e.strerror})") from e
