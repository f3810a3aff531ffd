"""The interface between readers and the writer: class names and a stream of batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from expunge.data.schema import TEST, TRAIN
from expunge.system.errors import DataError


@dataclass(frozen=True)
class Batch:
    """n consecutive rows of a source. `content` is `(n, h, w, c)` uint8 images (raw), n encoded files, or n texts."""

    sample_ids: Sequence[str]
    labels: np.ndarray
    splits: Sequence[str]
    content: np.ndarray | list[bytes] | list[str]
    subjects: Sequence[str | None] | None = None


@dataclass(frozen=True)
class Source:
    """A data source whose batches can be read once, in order."""

    name: str
    class_names: tuple[str, ...]
    encoding: str
    batches: Iterator[Batch]
    has_subject: bool = False


def stratified_test_rows(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return the boolean mask `(n,)` of a stratified test split with `fraction` of the rows of every class.

    The number of test rows is rounded per class; a class of two or more rows keeps at least one training row and one
    test row. Raises DataError for a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise DataError(f"test_fraction is {fraction}; give a number between 0 and 1")
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        take = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        mask[rng.permutation(rows)[:take]] = True
    return mask


def test_rows_of_subjects(labels: np.ndarray, subjects: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """Return a boolean mask `(n,)` of test rows that leaves every subject a training row, so that it can be forgotten.

    One row of each subject, drawn with `seed`, is kept for training. From the other rows of each class, `fraction` of
    the size of the class is drawn, or all of them if there are fewer. All test rows therefore belong to subjects in the
    training data. Raises DataError for a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise DataError(f"test_fraction is {fraction}; give a number between 0 and 1")
    order = np.random.default_rng(seed).permutation(len(labels))
    _, first = np.unique(np.asarray(subjects)[order], return_index=True)
    free = np.ones(len(labels), dtype=bool)
    free[order[first]] = False
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = order[(labels == label)[order] & free[order]]
        mask[rows[: max(round(fraction * int((labels == label).sum())), 1)]] = True
    return mask


def split_names(test_mask: np.ndarray) -> list[str]:
    """Return the name of the split of each row: "test" where the mask `(n,)` is set, otherwise "train"."""
    return [TEST if t else TRAIN for t in test_mask]


def array_batches(
    images: np.ndarray,
    labels: np.ndarray,
    splits: Sequence[str],
    sample_ids: Sequence[str],
    subjects: Sequence[str | None] | None = None,
    rows: int = 4096,
) -> Iterator[Batch]:
    """Yield arrays in memory as batches of `rows` rows."""
    for i in range(0, len(images), rows):
        cut = slice(i, i + rows)
        yield Batch(sample_ids[cut], labels[cut], splits[cut], images[cut], subjects[cut] if subjects else None)
