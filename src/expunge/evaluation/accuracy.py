"""Accuracies, their distance to the retrained model's, per-class damage and calibration error.

All values are averages over whole sets of rows, never means of batch means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.divergence import check_logits, log_softmax, mean

PARTS = ("retain", "forget", "test_retain", "test_forget")
UNSEEN = "unseen"  # rows that no metric uses and no model is trained on; methods may be fitted with them


def correct_rows(logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each row is classified correctly, `(n,)`: the largest of `logits (n, C)` is the one at `labels (n,)`.

    Of equal logits the first counts as the largest. Raises ValueError for labels of another length or out of range.
    """
    x = check_logits(logits)
    y = np.asarray(labels)
    if y.shape != (len(x),):
        raise ValueError(f"labels must have one entry per row of logits, got {y.shape} and {x.shape}")
    if len(y) and (y.min() < 0 or y.max() >= x.shape[1]):
        raise ValueError(f"labels must be in [0, {x.shape[1]}), got {y.min()} to {y.max()}")
    return np.asarray(x.argmax(axis=1) == y)


def accuracy(logits: NDArray[Any], labels: NDArray[Any]) -> float | None:
    """Return the share of rows that are classified correctly, in [0, 1]; None without rows.

    The target is the retrained model's value.
    """
    return mean(correct_rows(logits, labels))


def mean_gap(candidate: Mapping[str, float | None], reference: Mapping[str, float | None]) -> float | None:
    """Mean of |candidate - reference| over the keys that have a value on both sides; None without one.

    Range [0, 1], target 0.
    """
    gaps = _gaps(candidate, reference)
    return float(np.mean(gaps)) if gaps else None


def tow(candidate: Mapping[str, float | None], reference: Mapping[str, float | None]) -> float | None:
    """Tug of war (ToW), the product over keys of 1 - |candidate - reference|.

    Source: Zhao et al. (2024), with the keys forget, retain and test. Range [0, 1], higher is better, target 1.
    The original itself scores 0.96 on random forgetting, so compare the value with the original's. None without a
    common key.
    """
    gaps = _gaps(candidate, reference)
    return float(np.prod([1.0 - g for g in gaps])) if gaps else None


def _gaps(candidate: Mapping[str, float | None], reference: Mapping[str, float | None]) -> list[float]:
    pairs = [(candidate[k], reference[k]) for k in candidate if k in reference]
    return [abs(a - b) for a, b in pairs if a is not None and b is not None]


def per_class(logits: NDArray[Any], labels: NDArray[Any]) -> list[float | None]:
    """Recall of each class, `C` entries in [0, 1]; None for a class without rows."""
    correct = correct_rows(logits, labels)
    return [mean(correct[np.asarray(labels) == c]) for c in range(np.shape(logits)[1])]


def class_damage(
    logits: NDArray[Any], original_logits: NDArray[Any], labels: NDArray[Any]
) -> tuple[list[float | None], int | None]:
    """Recall lost per class, original minus model, `C` entries in [-1, 1], and the class that lost most.

    0 means no damage. Target: the retrained model's own damage. The entry of a class without rows is None, and so is
    the second value when no class has rows.
    """
    before, after = per_class(original_logits, labels), per_class(logits, labels)
    lost = [None if a is None or b is None else b - a for b, a in zip(before, after, strict=True)]
    # The negated index makes `max` return the first of equally damaged classes.
    known = [(value, -c) for c, value in enumerate(lost) if value is not None]
    return lost, -max(known)[1] if known else None


def ece(logits: NDArray[Any], labels: NDArray[Any], bins: int = 15) -> float | None:
    """Expected calibration error: sum over equal-width confidence bins of share * |accuracy - mean confidence|.

    Source: Guo et al. (2017). Range [0, 1]. Target: the retrained model's value. None without rows.
    """
    correct = correct_rows(logits, labels)
    if not len(correct):
        return None
    confidence = np.exp(log_softmax(logits)).max(axis=1)
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are (a, b]
    excess = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(excess).sum() / len(correct))
