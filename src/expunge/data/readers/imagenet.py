"""Tiny-ImageNet and ImageNet in their published layouts. The validation images are the test set.

Class names are WordNet ids in sorted order, as in the weights of torchvision and timm.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from expunge.data.images import decode
from expunge.data.limits import SUFFIXES
from expunge.data.readers.archives import Published, unpacked
from expunge.data.readers.listed import BATCH, Picture, picture_source, read_file
from expunge.data.schema import RAW, TEST, TRAIN
from expunge.data.source import Batch, Source
from expunge.system.errors import DataError

TINY = Published(
    "tiny-imagenet-200.zip",
    "90528d7ca1a48142e341f4ef8d21d0de",
    ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
)
KAGGLE_ANSWERS = "LOC_val_solution.csv"


def read_tiny_imagenet(root: Path, download: bool = False) -> Source:
    """Read Tiny-ImageNet (200 classes, 64 x 64 pixels): training and validation images; its test set has no labels.

    `wnids.txt` lists the classes. Validation labels come from `val/val_annotations.txt` or, without that file, from
    class folders in `val`. Greyscale images become RGB, so all rows have one shape. Ids are relative paths. Raises
    DataError for missing or inconsistent files.
    """
    directory = unpacked(root, "tiny-imagenet-200", TINY, download)
    names = sorted(set(_lines(directory / "wnids.txt")))
    index = {name: i for i, name in enumerate(names)}
    train = _by_class(directory, "train", index, TRAIN)
    annotations = directory / "val" / "val_annotations.txt"
    if annotations.is_file():
        test = [
            Picture(f"val/images/{file}", _index(index, name, annotations), TEST)
            for file, name in _annotated(annotations)
        ]
    else:
        test = _by_class(directory, "val", index, TEST)
    source = picture_source("tiny-imagenet", directory, names, train + test)
    return replace(source, encoding=RAW, batches=_as_rgb(directory, train + test))


def read_imagenet(root: Path) -> Source:
    """Read ILSVRC-2012 from `train/WNID/*.JPEG` and `val/WNID/*.JPEG` below `root`; ids are these paths.

    The bytes of the files are stored unchanged. If the validation images are directly in `val/`, Kaggle's
    LOC_val_solution.csv must be in the same directory as `val/` or in one of the three above it. Nothing is downloaded,
    because there is no licence to redistribute the images. Raises DataError for missing or inconsistent files.
    """
    kaggle = root / "ILSVRC" / "Data" / "CLS-LOC"
    top = kaggle if kaggle.is_dir() else root
    for split in ("train", "val"):
        if not (top / split).is_dir():
            raise DataError(
                f"{top}: contains no directory {split}/; set data.root to the directory with train/ and val/"
            )
    names = sorted(d.name for d in (top / "train").iterdir() if d.is_dir() and not d.name.startswith("."))
    index = {name: i for i, name in enumerate(names)}
    train = _by_class(top, "train", index, TRAIN)
    flat = any(f.suffix.lower() in SUFFIXES for f in (top / "val").iterdir())
    test = _from_answers(top, index) if flat else _by_class(top, "val", index, TEST)
    return picture_source("imagenet", top, names, train + test)


def _by_class(root: Path, folder: str, index: dict[str, int], split: str) -> list[Picture]:
    """List the images at any depth below the class folders of `root / folder`, sorted by path."""
    pictures = []
    for directory in sorted(d for d in (root / folder).glob("*") if d.is_dir() and not d.name.startswith(".")):
        label = _index(index, directory.name, root / folder)
        files = sorted(f.relative_to(root).as_posix() for f in directory.rglob("*") if f.suffix.lower() in SUFFIXES)
        pictures += [Picture(f, label, split) for f in files]
    if not pictures:
        raise DataError(f"{root / folder}: contains no images in class folders; unpack the data set again")
    return pictures


def _index(index: dict[str, int], name: str, where: Path) -> int:
    if name not in index:
        raise DataError(
            f"{where}: {name!r} is not one of the {len(index)} classes of the training images; unpack the data set "
            "again"
        )
    return index[name]


def _annotated(file: Path) -> list[tuple[str, str]]:
    """Return the file name and the WordNet id of each line `name<TAB>wnid<TAB>x0<TAB>y0<TAB>x1<TAB>y1`."""
    rows = []
    for number, line in enumerate(_lines(file), 1):
        fields = line.split("\t")
        if len(fields) < 2:
            raise DataError(f"{file}: line {number} has no tab between image and class; unpack {TINY.name} again")
        rows.append((fields[0], fields[1]))
    return rows


def _from_answers(top: Path, index: dict[str, int]) -> list[Picture]:
    file = next((d / KAGGLE_ANSWERS for d in (top, *list(top.parents)[:3]) if (d / KAGGLE_ANSWERS).is_file()), None)
    if file is None:
        raise DataError(
            f"{top / 'val'}: its images are not in class folders; sort them into val/WNID/, or put {KAGGLE_ANSWERS} "
            f"into {top}"
        )
    with open(file, newline="", encoding="utf-8") as f:
        rows = [(r.get("ImageId") or "", (r.get("PredictionString") or "").split()) for r in csv.DictReader(f)]
    if not rows or not all(name and answer for name, answer in rows):
        raise DataError(
            f"{file}: every row must have the columns ImageId and PredictionString; unpack the data set again"
        )
    return [Picture(f"val/{n}.JPEG", _index(index, a[0], file), TEST) for n, a in sorted(rows)]


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.rstrip("\r") for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{file}: cannot be read ({e}); unpack the data set again") from e
    if not lines:
        raise DataError(f"{file}: is empty; unpack the data set again")
    return lines


def _as_rgb(root: Path, pictures: list[Picture]) -> Iterator[Batch]:
    """Yield batches of images decoded to uint8 `(64, 64, 3)`. Raises DataError for an image of another size."""
    for i in range(0, len(pictures), BATCH):
        cut = pictures[i : i + BATCH]
        images = [decode(read_file(root / p.path), str(root / p.path)) for p in cut]
        for picture, image in zip(cut, images, strict=True):
            if image.shape[:2] != (64, 64):
                raise DataError(
                    f"{root / picture.path}: has the shape {image.shape[:2]}, but 64 x 64 is needed; unpack the data "
                    "set again"
                )
        pixels = np.stack([np.broadcast_to(image, (64, 64, 3)) for image in images])
        yield Batch([p.path for p in cut], np.array([p.label for p in cut], np.int32), [p.split for p in cut], pixels)
