"""The rows of a request and the inputs that training reads, validated."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.data.dataset import Dataset
from expunge.data.schema import TEXT
from expunge.models.classifier import Classifier
from expunge.models.tokens import Tokens
from expunge.system.errors import DataError

Index = NDArray[np.int64]
Examples = NDArray[np.uint8] | NDArray[np.int32]  # images (n, h, w) or (n, h, w, c), or token ids (n, t) of texts


def examples(classifier: Classifier, dataset: Dataset, rows: NDArray[Any] | None = None) -> Examples:
    """Return the inputs at `rows` (None: all) in memory, for training: uint8 images, or int32 token ids of texts.

    Token ids are negative after the end of a text. Raises DataError for images of different sizes, and for texts if
    `classifier` takes images.
    """
    if dataset.encoding == TEXT and isinstance(classifier.preprocess, Tokens):
        return classifier.preprocess(dataset.inputs(rows)).int().numpy()
    images = dataset.images(rows)
    if not isinstance(images, np.ndarray):
        raise DataError(
            f"{dataset.directory}: images differ in size or in colour (some are grey), but training weights needs one "
            "size and one kind; convert them, or set model.training: head and leave out methods that train weights"
        )
    return images


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
    inputs: Examples,
    labels: NDArray[Any],
    retain_rows: NDArray[Any],
    forget_rows: NDArray[Any] | None,
) -> tuple[Index, Index, Index]:
    """Return labels, retained and forgotten rows as int64.

    `forget_rows` None means that labels were corrected and no row is removed. Raises DataError for unusable rows or
    labels.
    """
    forgotten = np.empty(0, np.int64) if forget_rows is None else forget_rows
    y, retain, forget = (np.asarray(a).astype(np.int64) for a in (labels, retain_rows, forgotten))
    kind, dtype = ("token ids", np.int32) if isinstance(classifier.preprocess, Tokens) else ("images", np.uint8)
    if inputs.dtype != dtype or len(inputs) != len(y) or y.ndim != 1:
        raise DataError(
            f"{kind} must be {np.dtype(dtype)} and have one label each, got {inputs.shape} {inputs.dtype} and labels "
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
