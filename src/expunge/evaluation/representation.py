"""What features reveal about the forgotten rows: linear and kNN probes, CKA, and the speed of relearning.

Features are `(n, d)`, float32 or float64. Probes are scored on rows that they did not learn from. The target of each
value is the retrained model's on its own features. It is well above chance, because a class that was never seen can
still be linearly separable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.divergence import Floats, check_logits


def check_features(z: NDArray[Any]) -> NDArray[Any]:
    """Return `z` as a matrix `(n, d)`. Raises ValueError for another shape or a non-finite value."""
    x = np.asarray(z)
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(f"features must be (rows, dimensions), got shape {x.shape}")
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        raise ValueError(f"features of row {int(np.argmax(bad))} ({int(bad.sum())} rows in all) are not finite")
    return x


def _standardise(train: NDArray[Any], *others: NDArray[Any]) -> list[Floats]:
    centre, scale = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    # The standard deviation of a constant column is a rounding error. Dividing by it would turn the column into noise.
    scale = np.where(scale > 1e-6 * np.abs(centre) + 1e-7 * scale.max(), scale, np.inf)
    return [np.asarray((x - centre) / scale, dtype=np.float64) for x in (train, *others)]


def linear_probe_rows(train: NDArray[Any], positive: NDArray[Any], test: NDArray[Any], truth: NDArray[Any]) -> Floats:
    """Whether a fresh linear probe is correct, per test row `(n_test,)`: 1.0, 0.0, or 0.5 on the decision boundary.

    A logistic regression with balanced class weights (L2, C = 1, standardised features, L-BFGS) learns `positive (n,)`
    bool from `train (n, d)` and is scored on `test` against `truth`. Constant features give 0.5 for every row. With as
    many positive as negative test rows the mean is the balanced accuracy, 0.5 for guessing. Raises ValueError if the
    training rows are all positive or all negative.
    """
    from sklearn.linear_model import LogisticRegression

    y, t = np.asarray(positive, dtype=bool), np.asarray(truth, dtype=bool)
    if y.all() or not y.any():
        raise ValueError("a probe needs both positive and negative rows to learn from")
    a, b = _standardise(check_features(train), check_features(test))
    model = LogisticRegression(class_weight="balanced", max_iter=300, tol=1e-4).fit(a, y)
    decision = model.decision_function(b)
    return np.where(np.abs(decision) < 1e-9, 0.5, ((decision > 0) == t).astype(np.float64))


def knn_rows(
    train: NDArray[Any], positive: NDArray[Any], test: NDArray[Any], truth: NDArray[Any], k: int = 11
) -> Floats:
    """Whether the majority of the k nearest training rows is correct, per test row: 1.0, 0.0, or 0.5 for a tied vote.

    Distances are Euclidean on the raw features. Use as many positive as negative training rows. Rows at the same
    distance as the k-th share the remaining votes equally, so constant features give the majority's label, or 0.5 with
    balanced rows. Raises ValueError without training rows.
    """
    y, t = np.asarray(positive, dtype=bool), np.asarray(truth, dtype=bool)
    a, b = check_features(train).astype(np.float64), check_features(test).astype(np.float64)
    if not len(a):
        raise ValueError("kNN needs at least one row to learn from")
    k = min(k, len(a))
    shift = a.mean(axis=0)  # centring keeps the squared norms small and so the differences of distances accurate
    a, b = a - shift, b - shift
    norms = (a * a).sum(axis=1)
    right = np.empty(len(b))
    for start in range(0, len(b), 512):
        chunk = b[start : start + 512]
        distance = norms - 2.0 * (chunk @ a.T)  # squared, without the test row's norm, which does not affect the order
        scale = 1e-9 * (norms.max() + (chunk * chunk).sum(axis=1, keepdims=True))
        kth = np.partition(distance, k - 1, axis=1)[:, k - 1 : k]
        near, tied = distance < kth - scale, np.abs(distance - kth) <= scale
        missing = (k - near.sum(axis=1)) / np.maximum(tied.sum(axis=1), 1)
        vote = (near @ y.astype(np.float64) + missing * (tied @ y.astype(np.float64))) / k
        predicted = np.where(np.abs(vote - 0.5) < 1e-9, 0.5, (vote > 0.5).astype(np.float64))
        here = t[start : start + 512]
        right[start : start + 512] = np.where(here, predicted, 1.0 - predicted)
    return right


def linear_cka(x: NDArray[Any], y: NDArray[Any]) -> float | None:
    """Linear CKA ||Yc^T Xc||_F^2 / (||Xc^T Xc||_F ||Yc^T Yc||_F) of features of the same rows; Kornblith et al. (2019).

    Range [0, 1]: 1 for features equal up to rotation, scale and shift, and exactly 1.0 for identical input. None if
    one side is constant or there are no rows. The dimensions of `x` and `y` may differ. With z' of one model and z of
    another the target is the CKA between two retrained models. Raises ValueError for different numbers of rows.
    """
    a, b = check_features(x).astype(np.float64), check_features(y).astype(np.float64)
    if len(a) != len(b):
        raise ValueError(f"CKA compares features of the same rows, got {len(a)} and {len(b)} rows")
    if len(a) == 0:
        return None
    same = np.array_equal(a, b)
    ac, bc = _centre(a), _centre(b)
    if ac is None or bc is None:
        return None
    if same:
        return 1.0
    xx, yy = float(np.sum((ac.T @ ac) ** 2)), float(np.sum((bc.T @ bc) ** 2))
    return min(float(np.sum((bc.T @ ac) ** 2) / np.sqrt(xx * yy)), 1.0)


def _centre(x: Floats) -> Floats | None:
    size = np.linalg.norm(x)
    x = x - x.mean(axis=0)
    norm = np.linalg.norm(x)
    return None if norm <= 1e-12 * size or norm == 0.0 else x / norm


def prototype_accuracy(prototypes: NDArray[Any], classes: NDArray[Any], z: NDArray[Any], labels: NDArray[Any]) -> float:
    """Accuracy of nearest-prototype classification, in [0, 1].

    Each row of `z (n, d)` gets the entry in `classes (k,)` of the nearest of `prototypes (k, d)` in Euclidean distance.
    """
    p, x = np.asarray(prototypes, np.float64), np.asarray(z, np.float64)
    distance = (p * p).sum(axis=1) - 2.0 * (x @ p.T)
    return float(np.mean(np.asarray(classes)[distance.argmin(axis=1)] == np.asarray(labels)))


def prototype_samples(
    retain: tuple[NDArray[Any], NDArray[Any]],
    forget: tuple[NDArray[Any], NDArray[Any]],
    test: tuple[NDArray[Any], NDArray[Any]],
    target: float,
    rng: np.random.Generator,
    sizes: Sequence[int] = (1, 2, 5, 10, 20, 50, 100),
    draws: int = 5,
) -> int | None:
    """Number of rows per forgotten class from which a prototype recognises the class again.

    It is the smallest of `sizes` for which the accuracy on `test`, averaged over `draws` random choices of rows,
    reaches `target`; None if none does or a class has fewer rows. Each set is `(z, labels)`. The prototype of a
    retained class is the mean of all its rows. A smaller number means that the class returns faster. Target: the number
    that a retrained model needs.
    """
    (zr, yr), (zf, yf), (zt, yt) = retain, forget, test
    old, new = np.unique(yr), np.unique(yf)
    if not len(new) or not len(yt):
        return None
    zr = check_features(zr)
    base = [zr[yr == c].mean(axis=0, dtype=np.float64) for c in old]
    rows = [rng.permuted(np.tile(np.flatnonzero(yf == c), (draws, 1)), axis=1) for c in new]
    for size in sizes:
        if min(r.shape[1] for r in rows) < size:
            return None
        reached = []
        for draw in range(draws):
            fresh = [np.asarray(zf)[r[draw, :size]].mean(axis=0, dtype=np.float64) for r in rows]
            reached.append(prototype_accuracy(np.stack(base + fresh), np.concatenate([old, new]), zt, yt))
        if np.mean(reached) >= target:
            return int(size)
    return None


def relearned_rows(
    logits: NDArray[Any], z: NDArray[Any], labels: NDArray[Any], steps: int = 100
) -> NDArray[np.bool_] | None:
    """Whether each forgotten row is correct after 0 .. `steps` gradient steps of the head, `(steps + 1, n)` bool.

    The steps are full-batch gradient steps on the cross-entropy of all forgotten rows. The mean over rows is the
    relearning curve; the mean over steps is a row's area under it. None without rows. `z (n, d)`: the input of the
    head; `logits (n, C)`: its present output. The step size is 1 / mean ||[z; 1]||^2. The curvature is at most half
    the inverse of that, so the descent never diverges and the curve does not depend on the scale of the features. Only
    the change of the head is computed, so its weights are not needed. A logit more than 10 below the row's largest
    starts 10 below it, because an attacker removes a mask (-inf or a large negative bias) before learning.
    """
    start, x, y = check_logits(logits), check_features(z), np.asarray(labels)
    if not len(y):
        return None
    start = np.maximum(start, start.max(axis=1, keepdims=True) - 10.0)
    h = np.concatenate([np.asarray(x, np.float64), np.ones((len(x), 1))], axis=1)
    rate = 1.0 / float((h * h).sum(axis=1).mean())
    change = np.zeros((h.shape[1], start.shape[1]))
    onehot = np.eye(start.shape[1])[y]
    right = np.zeros((steps + 1, len(y)), dtype=np.bool_)
    for step in range(steps + 1):
        now = start + h @ change
        right[step] = now.argmax(axis=1) == y
        if step < steps:
            p = np.exp(now - now.max(axis=1, keepdims=True))
            change += rate / len(y) * (h.T @ (onehot - p / p.sum(axis=1, keepdims=True)))
    return right


def steps_to(curve: Sequence[float], target: float) -> int | None:
    """Index of the first value of `curve` that reaches `target`; None if none does."""
    return next((i for i, value in enumerate(curve) if value >= target), None)
