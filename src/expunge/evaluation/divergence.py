"""Divergence and agreement between the predictions of two classifiers, per row.

All functions take logits `(n, C)`, float32 or float64, and compute in float64. Log-probabilities are floored at
`LOG_FLOOR = log(1e-12)`, so that a class masked to -inf contributes at most 27.6 nats times its probability instead of
infinity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LOG_FLOOR = float(np.log(1e-12))


def check_logits(logits: NDArray[Any]) -> Floats:
    """Return `logits` as float64 `(n, C)`; -inf marks a masked class.

    Raises ValueError for another shape, for NaN or +inf, and for a row that is -inf throughout.
    """
    return _checked(logits)[0]


def _checked(logits: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return `check_logits(logits)` and the largest logit of each row, `(n, 1)`."""
    x = np.asarray(logits, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(f"logits must be (rows, classes), got shape {x.shape}")
    top = x.max(axis=1, keepdims=True)  # NaN where the row has one
    bad = ~np.isfinite(top[:, 0])
    if bad.any():
        raise ValueError(
            f"logits of row {int(np.argmax(bad))} ({int(bad.sum())} rows in all) are NaN, +inf or all -inf"
        )
    return x, top


def log_softmax(logits: NDArray[Any]) -> Floats:
    """Log-probabilities `(n, C)` in nats, floored at LOG_FLOOR. Range [LOG_FLOOR, 0]."""
    x, top = _checked(logits)
    x = x - top
    return np.asarray(np.maximum(x - np.log(np.exp(x).sum(axis=1, keepdims=True)), LOG_FLOOR))


def _pair(p_logits: NDArray[Any], q_logits: NDArray[Any]) -> tuple[Floats, Floats]:
    if np.shape(p_logits) != np.shape(q_logits):
        raise ValueError(
            f"both models must score the same rows and classes, got {np.shape(p_logits)} and {np.shape(q_logits)}"
        )
    return log_softmax(p_logits), log_softmax(q_logits)


def mean(values: NDArray[Any]) -> float | None:
    """Mean over rows; None without rows."""
    return float(np.mean(values)) if len(values) else None


def kl_rows(p_logits: NDArray[Any], q_logits: NDArray[Any]) -> Floats:
    """KL(p || q) = sum_c p_c (log p_c - log q_c) per row `(n,)`, nats. Range [0, 27.7]; 0 for equal predictions.

    p is the retrained model. Target: the value between two retrained models.
    """
    p, q = _pair(p_logits, q_logits)
    return np.asarray(np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0))


def js_rows(p_logits: NDArray[Any], q_logits: NDArray[Any]) -> Floats:
    """Jensen-Shannon divergence, (KL(p||m) + KL(q||m)) / 2 with m = (p + q) / 2, per row `(n,)`, nats. Range [0, ln 2].

    Symmetric; 0 for equal predictions. Target: the value between two retrained models.
    """
    p, q = _pair(p_logits, q_logits)
    m = np.maximum(p, q) + (np.log1p(np.exp(-np.abs(p - q))) - np.log(2.0))  # log((P + Q) / 2), exact for P = Q
    js = 0.5 * ((np.exp(p) * (p - m)).sum(axis=1) + (np.exp(q) * (q - m)).sum(axis=1))
    return np.asarray(np.clip(js, 0.0, np.log(2.0)))


def agreement_rows(p_logits: NDArray[Any], q_logits: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether both models predict the same class, per row `(n,)`. Target: the share between two retrained models."""
    p, q = _pair(p_logits, q_logits)
    return np.asarray(p.argmax(axis=1) == q.argmax(axis=1))


def activation_distance_rows(p_logits: NDArray[Any], q_logits: NDArray[Any]) -> Floats:
    """Euclidean distance of the two probability vectors per row `(n,)`. Range [0, sqrt 2]; 0 for equal predictions.

    Source: Golatkar et al. (2021). Target: the value between two retrained models.
    """
    p, q = _pair(p_logits, q_logits)
    return np.asarray(np.linalg.norm(np.exp(p) - np.exp(q), axis=1))


def zrf(logits: NDArray[Any], incompetent_logits: NDArray[Any] | None = None) -> float | None:
    """Zero-retrain forgetting score (ZRF), 1 - mean JS(model || incompetent teacher); None without rows.

    Source: Chundawat et al. (2023). JS is in nats, so the range is [1 - ln 2, 1]. The teacher is an untrained network;
    without its logits the uniform distribution replaces it. Higher means more random predictions, which is not
    better: the target is the retrained model's value.
    """
    teacher = np.zeros_like(np.asarray(logits, dtype=np.float64)) if incompetent_logits is None else incompetent_logits
    js = mean(js_rows(logits, teacher))
    return None if js is None else 1.0 - js


def summary(reference_logits: NDArray[Any], logits: NDArray[Any]) -> dict[str, float | None]:
    """Means over rows of KL(reference || model), JS, agreement and activation distance; None without rows."""
    return {
        "kl": mean(kl_rows(reference_logits, logits)),
        "js": mean(js_rows(reference_logits, logits)),
        "agreement": mean(agreement_rows(reference_logits, logits)),
        "activation_distance": mean(activation_distance_rows(reference_logits, logits)),
    }
