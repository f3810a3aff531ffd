"""What a reader hands to the writer: class names and a stream of batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from expunge.data.schema import TEST, TRAIN
from expunge.system.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Rows of a source, in order. `content` is `(n, h, w, c)` uint8 images (raw), n encoded files, or n texts."""

    sample_ids: Sequence[str]
    labels: np.ndarray
    splits: Sequence[str]
    content: np.ndarray | list[bytes] | list[str]
    subjects: Sequence[str | None] | None = None


@dataclass(frozen=True)
class Source:
    """A data source that can be read once, front to back."""

    name: str
    class_names: tuple[str, ...]
    encoding: str
    batches: Iterator[Batch]
    has_subject: bool = False


def stratified_test_rows(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """A boolean mask `(n,)` with a seeded `fraction` of every class set; the rest is for training.

    Rounds per class, and leaves at least one training row and one test row in a class of two or more.
    Raises DataError for a fraction outside (0, 1).
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
    """A boolean mask `(n,)` of test rows that leaves every subject a training row, so that all can be forgotten.

    Of each subject a seeded row is kept for training; of the other rows of a class, `fraction` of its number of rows
    is drawn, as far as there are so many. Test rows are therefore of subjects that the model was trained on.
    Raises DataError for a fraction outside (0, 1).
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
    return [TEST if t else TRAIN for t in test_mask]


def array_batches(
    images: np.ndarray,
    labels: np.ndarray,
    splits: Sequence[str],
    sample_ids: Sequence[str],
    subjects: Sequence[str | None] | None = None,
    rows: int = 4096,
) -> Iterator[Batch]:
    """Cut arrays that are in memory into batches of `rows` rows."""
    for i in range(0, len(images), rows):
        cut = slice(i, i + rows)
        yield Batch(sample_ids[cut], labels[cut], splits[cut], images[cut], subjects[cut] if subjects else None)
