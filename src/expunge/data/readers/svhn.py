"""Street View House Numbers, cropped digits (Netzer et al. 2011): `train_32x32.mat` and `test_32x32.mat`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from expunge.data.readers.archives import Published, fetch
from expunge.data.readers.matlab import read_mat
from expunge.data.schema import RAW, TEST, TRAIN
from expunge.data.source import Batch, Source, array_batches
from expunge.system.errors import DataError

URL = "http://ufldl.stanford.edu/housenumbers/"
FILES = {
    TRAIN: Published("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", (URL + "train_32x32.mat",)),
    TEST: Published("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", (URL + "test_32x32.mat",)),
}


def read_svhn(root: Path, download: bool = False) -> Source:
    """Read the digits of both files, train first; ids are `train-00000` and `test-00000`. The extra set is not read.

    The files have `X (32, 32, 3, n)` uint8 and `y (n, 1)`, with 10 for the digit zero. Raises DataError for a missing
    file, other arrays than these, and a label out of range.
    """
    arrays = {split: _read(root, wanted, download) for split, wanted in FILES.items()}

    def batches() -> Iterator[Batch]:
        for split, (images, labels) in arrays.items():
            ids = [f"{split}-{i:05d}" for i in range(len(labels))]
            yield from array_batches(images, labels, [split] * len(ids), ids)

    return Source("svhn", tuple(str(i) for i in range(10)), RAW, batches())


def _read(root: Path, wanted: Published, download: bool) -> tuple[np.ndarray, np.ndarray]:
    file = root / wanted.name
    if not file.is_file():
        if not download:
            raise DataError(
                f"{file}: no such file; set data.root to the directory with {wanted.name}, or set data.download: true"
            )
        file = fetch(root, wanted)
    images, labels = read_mat(file, ("X", "y"))
    labels = labels.reshape(-1).astype(np.int32)
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        raise DataError(
            f"{file}: X has the type {images.dtype} and the shape {images.shape} for {len(labels)} labels; delete "
            "the file and fetch it again"
        )
    bad = np.flatnonzero((labels < 1) | (labels > 10))
    if len(bad):
        raise DataError(
            f"{file}: row {bad[0]} has label {labels[bad[0]]}, which is outside 1 to 10; fetch the file again"
        )
    return images.transpose(3, 0, 1, 2), labels % 10
