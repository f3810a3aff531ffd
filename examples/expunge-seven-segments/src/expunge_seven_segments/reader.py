"""A data source: 800 noisy pictures of digits on 20 displays, drawn when they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from expunge.data.schema import RAW
from expunge.data.source import Source, array_batches, split_names, stratified_test_rows
from expunge.system.errors import DataError
from expunge_seven_segments.segments import drawn

DISPLAYS, TIMES = 20, 4  # each display shows each digit so many times


def read(path: Path | None, test_fraction: float, seed: int) -> Source:
    """Return the pictures as a data source; `path` is data.path of params.yaml.

    The pictures are always the same; `seed` draws only the split, so that ids and rows stay what they are when params
    change.
    """
    if path is not None:
        raise DataError(f"data.path is {path}: seven-segments draws its pictures; set it to null")
    labels = np.tile(np.repeat(np.arange(10), TIMES), DISPLAYS)
    displays = np.repeat(np.arange(DISPLAYS), 10 * TIMES)
    rng = np.random.default_rng(7)
    brightness = rng.uniform(120, 220, DISPLAYS)  # each display has its own
    pictures = np.stack([drawn(digit) for digit in labels]) * brightness[displays, None, None]
    pictures = np.clip(pictures + rng.normal(20, 25, pictures.shape), 0, 255).astype(np.uint8)[..., None]
    ids = [f"display-{d:02}-{i:02}" for d in range(DISPLAYS) for i in range(10 * TIMES)]
    splits = split_names(stratified_test_rows(labels, test_fraction, seed))
    people = [f"display-{d:02}" for d in displays]
    names = tuple(str(digit) for digit in range(10))
    return Source("seven-segments", names, RAW, array_batches(pictures, labels, splits, ids, people), has_subject=True)
