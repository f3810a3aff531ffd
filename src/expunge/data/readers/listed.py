"""Data sets of image files with lists for their splits: shared functions, and readers of Food-101 and Flowers-102."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expunge.data.readers.archives import Published, checked_file, unpacked
from expunge.data.readers.matlab import read_mat
from expunge.data.schema import ENCODED, SPLITS, TEST, TRAIN
from expunge.data.source import Batch, Source
from expunge.system.errors import DataError

BATCH = 64

FOOD = Published(
    "food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87", ("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",)
)
FLOWERS_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
FLOWERS, FLOWER_LABELS, FLOWER_SETS = (
    Published(name, md5, (FLOWERS_URL + name,))
    for name, md5 in (
        ("102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
        ("imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
        ("setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
    )
)
FLOWER_CLASSES = 102


@dataclass(frozen=True)
class Picture:
    """An image file; its id is `path`, relative to the root of the data set."""

    path: str
    label: int
    split: str


def picture_source(name: str, root: Path, class_names: Sequence[str], pictures: Sequence[Picture]) -> Source:
    """Return a source of the image files `pictures` below `root`, in the given order.

    Raises DataError for an empty list and for a path outside `root`.
    """
    if not pictures:
        raise DataError(f"{root}: its lists name no images; unpack the data set again")
    for picture in pictures:
        parts = Path(picture.path).parts
        if Path(picture.path).is_absolute() or ".." in parts:
            raise DataError(
                f"{root}: its lists name {picture.path!r}, which is outside the data set; unpack the data set again"
            )

    def batches() -> Iterator[Batch]:
        for i in range(0, len(pictures), BATCH):
            cut = pictures[i : i + BATCH]
            labels = np.array([p.label for p in cut], dtype=np.int32)
            content = [read_file(root / p.path) for p in cut]
            yield Batch([p.path for p in cut], labels, [p.split for p in cut], content)

    return Source(name, tuple(class_names), ENCODED, batches())


def read_file(file: Path) -> bytes:
    """Return the bytes of an image file. Raises DataError if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as e:
        raise DataError(f"{file}: cannot be read ({e.strerror}); unpack the data set again") from e


def read_food101(root: Path, download: bool = False) -> Source:
    """Read Food-101 (Bossard et al. 2014); `meta/train.json` and `meta/test.json` list the images of each class."""
    directory = unpacked(root, "food-101", FOOD, download)
    listed = {split: _listed(directory / "meta" / f"{split}.json") for split in SPLITS}
    names = sorted(set(listed[TRAIN]) | set(listed[TEST]))
    index = {name: i for i, name in enumerate(names)}
    pictures = [
        Picture(f"images/{path}.jpg", index[name], split)
        for split in SPLITS
        for name in sorted(listed[split])
        for path in listed[split][name]
    ]
    return picture_source("food101", directory, names, pictures)


def _listed(file: Path) -> dict[str, list[str]]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise DataError(f"{file}: cannot be read as JSON ({e}); unpack {FOOD.name} again") from e
    lists = value.values() if isinstance(value, dict) else [None]
    if not all(isinstance(paths, list) and all(isinstance(p, str) for p in paths) for paths in lists):
        raise DataError(f"{file}: must map each class to a list of paths; unpack {FOOD.name} again")
    return dict(value)


def read_flowers102(root: Path, download: bool = False) -> Source:
    """Read Oxford 102 Flowers (Nilsback and Zisserman 2008) from `root/flowers-102`, in torchvision's layout.

    The published training and validation sets (1,020 images each) are the training split, the published test set
    (6,149) is the test split. Class names are the published numbers 1 to 102. Raises DataError for missing or
    inconsistent files.
    """
    base = root if root.name == "flowers-102" else root / "flowers-102"
    directory = unpacked(base, "jpg", FLOWERS, download).parent
    files = [directory / f.name for f in (FLOWER_LABELS, FLOWER_SETS)]
    if download:
        for file, wanted in zip(files, (FLOWER_LABELS, FLOWER_SETS), strict=True):
            if not file.is_file():
                checked_file(directory, wanted, download=True)
    (labels,) = read_mat(files[0], ("labels",))
    sets = read_mat(files[1], ("trnid", "valid", "tstid"))
    labels = labels.reshape(-1).astype(int)
    pictures = []
    for numbers, split in zip(sets, (TRAIN, TRAIN, TEST), strict=True):
        for number in numbers.reshape(-1).astype(int):
            if not 1 <= number <= len(labels) or not 1 <= labels[number - 1] <= FLOWER_CLASSES:
                raise DataError(f"{files[1]}: picture {number} has no label 1 to {FLOWER_CLASSES} in {files[0].name}")
            pictures.append(Picture(f"jpg/image_{number:05d}.jpg", int(labels[number - 1]) - 1, split))
    return picture_source("flowers102", directory, [str(i + 1) for i in range(FLOWER_CLASSES)], pictures)
