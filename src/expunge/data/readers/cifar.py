"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their binary version. The Python version is a pickle and is refused.

A record consists of one label byte (CIFAR-10) or of a coarse and a fine one (CIFAR-100), followed by the 32 x 32 bytes
of each of the channels red, green and blue.
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expunge.data.readers.archives import Published, unpacked
from expunge.data.schema import RAW, TEST, TRAIN
from expunge.data.source import Batch, Source, array_batches
from expunge.system.errors import DataError

log = logging.getLogger(__name__)

SIDE = 32
PIXELS = 3 * SIDE * SIDE
URL = "https://www.cs.toronto.edu/~kriz/"
ROWS = {TRAIN: 50_000, TEST: 10_000}


@dataclass(frozen=True)
class Cifar:
    """The files of one of the two data sets. `label_bytes` precede each image; the last of them is the label."""

    name: str
    folder: str
    pickled: str
    archive: Published
    files: dict[str, tuple[str, ...]]
    label_bytes: int
    names_file: str
    classes: int


CIFAR10 = Cifar(
    "cifar10",
    "cifar-10-batches-bin",
    "cifar-10-batches-py",
    Published("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", (URL + "cifar-10-binary.tar.gz",)),
    {TRAIN: tuple(f"data_batch_{i}.bin" for i in range(1, 6)), TEST: ("test_batch.bin",)},
    1,
    "batches.meta.txt",
    10,
)
CIFAR100 = Cifar(
    "cifar100",
    "cifar-100-binary",
    "cifar-100-python",
    Published("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", (URL + "cifar-100-binary.tar.gz",)),
    {TRAIN: ("train.bin",), TEST: ("test.bin",)},
    2,
    "fine_label_names.txt",
    100,
)


def read_cifar(root: Path, which: Cifar, download: bool = False) -> Source:
    """Read all rows, train first; ids are `train-00000` and `test-00000`, numbered consecutively over the files.

    `root` contains the unpacked directory or the archive, or is that directory. A warning is logged if a split has
    another number of rows than published. Raises DataError for the pickled version, a missing file, an incomplete
    record, and a label out of range.
    """
    archive_here = (root / which.archive.name).is_file()
    if (root / which.pickled).is_dir() and not (root / which.folder).is_dir() and not archive_here and not download:
        raise DataError(
            f"{root / which.pickled}: the python version is a pickle, which is never loaded; download the binary "
            f"version {which.archive.urls[0]} into {root}, or set data.download: true"
        )
    directory = unpacked(root, which.folder, which.archive, download)
    names = _names(directory / which.names_file, which.classes)
    parts = {split: [_records(directory / f, which) for f in files] for split, files in which.files.items()}
    for split, records in parts.items():
        if (n := sum(len(r) for r in records)) != ROWS[split]:
            log.warning("%s: has %d %s rows, but the published data set has %d", directory, n, split, ROWS[split])

    def batches() -> Iterator[Batch]:
        for split, records in parts.items():
            start = 0
            for part in records:
                images = part[:, which.label_bytes :].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
                ids = [f"{split}-{i:05d}" for i in range(start, start + len(part))]
                yield from array_batches(
                    images, part[:, which.label_bytes - 1].astype(np.int32), [split] * len(ids), ids
                )
                start += len(part)

    return Source(which.name, names, RAW, batches())


def _records(file: Path, which: Cifar) -> np.ndarray:
    """Map a file of records into memory as a read-only array `(n, label bytes + 3072)`, uint8."""
    size = which.label_bytes + PIXELS
    if not file.is_file():
        raise DataError(f"{file}: no such file; unpack {which.archive.name} again")
    length = file.stat().st_size
    if length == 0 or length % size:
        raise DataError(
            f"{file}: has {length} bytes, which is not a multiple of the record size {size}; unpack "
            f"{which.archive.name} again"
        )
    records = np.memmap(file, np.uint8, "r").reshape(-1, size)
    bad = np.flatnonzero(records[:, which.label_bytes - 1] >= which.classes)
    if len(bad):
        label = records[bad[0], which.label_bytes - 1]
        raise DataError(
            f"{file}: record {bad[0]} has label {label}, which is outside 0 to {which.classes - 1}; unpack "
            f"{which.archive.name} again"
        )
    return records


def _names(file: Path, classes: int) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{file}: the class names cannot be read ({e}); unpack the archive again") from e
    if len(names) != classes or len(set(names)) != classes:
        raise DataError(f"{file}: names {len(set(names))} classes, but {classes} are needed; unpack the archive again")
    return names
