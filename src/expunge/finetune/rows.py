"""Validation of the rows of a request."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.models.classifier import Classifier
from expunge.system.errors import DataError

Index = NDArray[np.int64]


def checked_unseen(labels: Index, retain: Index, forget: Index, unseen_rows: NDArray[Any] | None) -> Index:
    """Return the unseen rows as int64, possibly none.

    Raises DataError for rows that are out of range, or among the retained or forgotten rows.
    """
    unseen = np.asarray([] if unseen_rows is None else unseen_rows).astype(np.int64)
    if unseen.ndim != 1 or (len(unseen) and (unseen.min() < 0 or unseen.max() >= len(labels))):
        raise DataError(f"unseen_rows must be a vector of positions in 0..{len(labels) - 1}")
    seen = np.intersect1d(unseen, np.concatenate([retain, forget]))
    if len(seen):
        raise DataError(
            f"row {seen[0]} ({len(seen)} rows in all) is among unseen_rows, but also among the retained or forgotten "
            "rows"
        )
    return unseen


def checked(
    classifier: Classifier,
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    retain_rows: NDArray[Any],
    forget_rows: NDArray[Any] | None,
) -> tuple[Index, Index, Index]:
    """Return labels, retained and forgotten rows as int64.

    `forget_rows` None means that labels were corrected and no row is removed. Raises DataError for unusable rows or
    labels.
    """
    gone = np.empty(0, np.int64) if forget_rows is None else forget_rows
    y, retain, forget = (np.asarray(a).astype(np.int64) for a in (labels, retain_rows, gone))
    if images.dtype != np.uint8 or len(images) != len(y) or y.ndim != 1:
        raise DataError(
            f"images must be uint8 and have one label each, got images {images.shape} {images.dtype} and labels "
            f"{y.shape}"
        )
    given = {"retain_rows": retain} if forget_rows is None else {"retain_rows": retain, "forget_rows": forget}
    for name, rows in given.items():
        if rows.ndim != 1 or not len(rows) or rows.min() < 0 or rows.max() >= len(y):
            raise DataError(
                f"{name} must have at least one position, and all in 0..{len(y) - 1}, got {len(rows)} positions"
            )
    both = np.intersect1d(retain, forget)
    if len(both):
        raise DataError(f"row {both[0]} ({len(both)} rows in all) is both retained and forgotten")
    used = y[np.concatenate([retain, forget])]
    if used.min() < 0 or used.max() >= classifier.card.num_classes:
        raise DataError(
            f"labels must be in 0..{classifier.card.num_classes - 1}, the classes of the model, got "
            f"{used.min()}..{used.max()}"
        )
    return y, retain, forget
