"""STL-10 (Coates et al. 2011) from its binary files: 5,000 + 8,000 colour images of 96 x 96 pixels.

The unlabelled images are not read. An image consists of 3 channels of 96 x 96 bytes in column-major order; labels are
bytes 1 to 10.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from expunge.data.readers.archives import Published, unpacked
from expunge.data.schema import RAW, SPLITS
from expunge.data.source import Batch, Source, array_batches
from expunge.system.errors import DataError

FOLDER = "stl10_binary"
ARCHIVE = Published(
    "stl10_binary.tar.gz",
    "91f7769df0f17e558f3565bffb0c7dfb",
    ("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",),
)
SIDE, CLASSES = 96, 10
SIZE = 3 * SIDE * SIDE
ROWS = 256  # per batch of 7 MB


def read_stl10(root: Path, download: bool = False) -> Source:
    """Read the labelled rows, train first; ids are `train-0000` and `test-0000`.

    Raises DataError, which names the file, for a missing or incomplete file and for a label out of range.
    """
    directory = unpacked(root, FOLDER, ARCHIVE, download)
    names = _names(directory / "class_names.txt")
    parts = {split: _read(directory, split) for split in SPLITS}

    def batches() -> Iterator[Batch]:
        for split, (images, labels) in parts.items():
            ids = [f"{split}-{i:04d}" for i in range(len(labels))]
            yield from array_batches(images, labels, [split] * len(ids), ids, rows=ROWS)

    return Source("stl10", names, RAW, batches())


def _read(directory: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    pixels, classes = directory / f"{split}_X.bin", directory / f"{split}_y.bin"
    for file in (pixels, classes):
        if not file.is_file():
            raise DataError(f"{file}: no such file; unpack {ARCHIVE.name} again")
    labels = np.frombuffer(classes.read_bytes(), np.uint8).astype(np.int32) - 1
    length = pixels.stat().st_size
    if length == 0 or length != len(labels) * SIZE:
        raise DataError(
            f"{pixels}: has {length} bytes for {len(labels)} labels, but {SIZE} bytes per label are needed; unpack "
            "it again"
        )
    bad = np.flatnonzero((labels < 0) | (labels >= CLASSES))
    if len(bad):
        raise DataError(
            f"{classes}: row {bad[0]} has label {labels[bad[0]] + 1}, which is outside 1 to {CLASSES}; unpack it again"
        )
    return np.memmap(pixels, np.uint8, "r").reshape(-1, 3, SIDE, SIDE).transpose(0, 3, 2, 1), labels


def _names(file: Path) -> tuple[str, ...]:
    try:
        names = tuple(file.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{file}: the class names cannot be read ({e}); unpack {ARCHIVE.name} again") from e
    if len(set(names)) != CLASSES:
        raise DataError(
            f"{file}: names {len(set(names))} classes, but {CLASSES} are needed; unpack {ARCHIVE.name} again"
        )
    return names
