"""Data sets that torchvision's own classes read, where these give an image and a class label and load no pickle.

The classes of CIFAR, LSUN and ImageNet load pickles; `named.py` has readers for the first and the last.
"""

from __future__ import annotations

import inspect
import io
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from expunge.data.readers.listed import BATCH, Picture, picture_source
from expunge.data.schema import ENCODED, TEST, TRAIN
from expunge.data.source import Batch, Source, split_names, stratified_test_rows
from expunge.system.errors import DataError

Options = Mapping[str, Any]


def _splits(*train: str, test: str = "test") -> dict[str, tuple[Options, ...]]:
    return {TRAIN: tuple({"split": name} for name in train), TEST: ({"split": test},)}


WHOLE: dict[str, tuple[Options, ...]] = {"": ({},)}  # no published test split
# By class of torchvision.datasets, the arguments for each split. The rows of these classes have the same order on every
# machine, or the class opens one file per row, and they are sorted by its path.
CLASSES: dict[str, dict[str, tuple[Options, ...]]] = {
    "Caltech101": WHOLE,
    "Caltech256": WHOLE,
    "CLEVRClassification": _splits("train", test="val"),
    "Country211": _splits("train", "valid"),
    "DTD": _splits("train", "val"),
    "EMNIST": {s: ({"split": "balanced", "train": s == TRAIN},) for s in (TRAIN, TEST)},
    "EuroSAT": WHOLE,
    "FER2013": _splits("train"),
    "FGVCAircraft": _splits("trainval"),
    "GTSRB": _splits("train"),
    "Imagenette": _splits("train", test="val"),
    "LFWPeople": {"": ({"split": "10fold"},)},  # the people of its training and test lists differ
    "OxfordIIITPet": _splits("trainval"),
    "PCAM": _splits("train"),
    "Places365": _splits("train-standard", test="val"),
    "QMNIST": {s: ({"what": s},) for s in (TRAIN, TEST)},
    "RenderedSST2": _splits("train", "val"),
    "SEMEION": WHOLE,
    "StanfordCars": _splits("train"),
    "SUN397": WHOLE,
    "USPS": {s: ({"train": s == TRAIN},) for s in (TRAIN, TEST)},
}


def read_torchvision_class(
    name: str, root: Path, download: bool = False, test_fraction: float = 0.2, seed: int = 0
) -> Source:
    """Read the data set of the class `torchvision.datasets.NAME` below `root`.

    Where the class opens files, the bytes of the files are stored, in the order of their paths relative to `root`,
    which are the ids. The other images are stored without loss, in the order of the class, with ids such as
    `train-00000`. Without a published test split a seeded stratified `test_fraction` is drawn. Downloads go to a
    temporary directory first. Raises DataError with the first line of what torchvision reports.
    """
    parts = _opened(name, root, download)
    first = next(iter(parts.values()))[0]
    if "loader" in _parameters(name):
        pictures = [
            Picture(Path(path).relative_to(root).as_posix(), _label(label, name, path), split)
            for split, opened in parts.items()
            for path, label in (item for one in opened for item in _items(one, name))
        ]
        labels, splits = [p.label for p in pictures], [p.split for p in pictures]
        if "" in parts:
            pictures.sort(key=lambda p: p.path)
            labels = [p.label for p in pictures]
            splits = split_names(stratified_test_rows(np.array(labels), test_fraction, seed))
        placed = [Picture(p.path, p.label, s) for p, s in zip(pictures, splits, strict=True)]
        placed.sort(key=lambda p: (p.split == TEST, p.path))
        return picture_source(name.lower(), root, _class_names(first, labels), placed)
    labels = [_label(y, name, i) for opened in parts.values() for one in opened for i, y in enumerate(_targets(one))]
    counts = {split: sum(len(one) for one in opened) for split, opened in parts.items()}
    splits = [split for split, count in counts.items() for _ in range(count)]
    ids = [f"{split or 'row'}-{i:05d}" for split, count in counts.items() for i in range(count)]
    if "" in parts:
        splits = split_names(stratified_test_rows(np.array(labels), test_fraction, seed))
    items = (image for opened in parts.values() for one in opened for image, _ in _items(one, name))
    return Source(name.lower(), _class_names(first, labels), ENCODED, _batches(ids, labels, splits, items))


def _batches(
    ids: Sequence[str], labels: Sequence[int], splits: Sequence[str], images: Iterator[Image.Image]
) -> Iterator[Batch]:
    for i in range(0, len(ids), BATCH):
        cut = slice(i, i + BATCH)
        content = [_encoded(next(images)) for _ in ids[cut]]
        yield Batch(ids[cut], np.array(labels[cut], dtype=np.int32), splits[cut], content)


def _encoded(image: Image.Image) -> bytes:
    """The image as binary PGM or PPM, whose bytes no compression library decides."""
    out = io.BytesIO()
    (image if image.mode in ("L", "RGB") else image.convert("RGB")).save(out, "PPM")
    return out.getvalue()


def _opened(name: str, root: Path, download: bool) -> dict[str, list[Any]]:
    """The data sets of torchvision by split; they are downloaded if they cannot be read and `download` is true."""
    try:
        return _made(name, root)
    except DataError:
        if not download:
            raise
    tmp = root / f".{name}.{secrets.token_hex(4)}.tmp"
    tmp.mkdir(parents=True)
    try:
        _made(name, root, tmp)
        for entry in sorted(tmp.iterdir()):
            if (root / entry.name).exists():
                raise DataError(f"{root / entry.name}: is not a complete {name}; delete it and run again")
            os.replace(entry, root / entry.name)
    finally:
        shutil.rmtree(tmp)
    return _made(name, root)


def _made(name: str, root: Path, fetch_to: Path | None = None) -> dict[str, list[Any]]:
    """Open all splits below `root`, or download them to `fetch_to` first and open them there."""
    made, known = _class(name), _parameters(name)
    fixed: dict[str, Any] = {}
    if "download" in known or "kwargs" in known:
        fixed["download"] = fetch_to is not None
    elif fetch_to is not None:
        raise DataError(f"data.download: {name} cannot be downloaded; put its files below {root}")
    if "loader" in known:
        fixed["loader"] = Path  # the path itself, in place of the decoded image
    try:
        return {
            split: [made(str(fetch_to or root), **options, **fixed) for options in wanted]
            for split, wanted in CLASSES[name].items()
        }
    except Exception as e:  # of archives, HTTP, missing files, lists that do not parse
        what = "could not be fetched" if fetch_to else "cannot be read"
        line = (str(e).strip().splitlines() or [""])[0]
        raise DataError(f"{root}: {name} {what} ({type(e).__name__}: {line}); check data.root and its files") from e


def _class(name: str) -> Any:
    from expunge.system.vision_imports import import_vision

    return getattr(import_vision("torchvision.datasets"), name)


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(_class(name).__init__).parameters


def _items(opened: Any, name: str) -> Iterator[tuple[Any, Any]]:
    for i in range(len(opened)):
        try:
            yield opened[i]
        except Exception as e:  # of decoders and files that vanished
            raise DataError(f"{opened.root}: row {i} of {name} cannot be read ({type(e).__name__}: {e})") from e


def _targets(opened: Any) -> Iterator[Any]:
    """Labels of all rows, from the list that the class keeps where it has one, so that no image is decoded."""
    for key in ("targets", "labels", "y", "_labels"):
        known = getattr(opened, key, None)
        if known is not None and len(known) == len(opened) and np.ndim(known[0]) == 0:
            return iter(known)
    return (opened[i][1] for i in range(len(opened)))


def _label(value: Any, name: str, row: object) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise DataError(f"{name}: row {row} has no class label, but {value!r}") from None


def _class_names(opened: Any, labels: Sequence[int]) -> tuple[str, ...]:
    """The class names that torchvision has, or the numbers of the classes."""
    count = max(labels) + 1
    for key in ("classes", "categories"):
        known = getattr(opened, key, None)
        if known is not None and len(known) >= count:
            names = [n[0] if isinstance(n, tuple) else str(n) for n in known]
            if len(set(names)) == len(names):
                return tuple(names)
    return tuple(str(i) for i in range(count))
