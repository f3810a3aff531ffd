"""scikit-learn's handwritten digits: 1,797 greyscale images of 8 x 8 pixels, which need no download."""

from __future__ import annotations

import numpy as np

from expunge.data.schema import RAW
from expunge.data.source import Source, array_batches, split_names, stratified_test_rows


def read_digits(test_fraction: float = 0.2, seed: int = 0) -> Source:
    """Read the digits with a seeded, stratified test split. Grey levels 0 to 16 are scaled to 0 to 255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    splits = split_names(stratified_test_rows(labels, test_fraction, seed))
    ids = [f"digit-{i:04d}" for i in range(len(images))]
    return Source("digits", tuple(str(i) for i in range(10)), RAW, array_batches(images, labels, splits, ids))
