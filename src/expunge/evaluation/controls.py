"""Negative controls: models that forgot nothing, made from the original's logits. A claim is shown only if all fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.divergence import Floats, log_softmax

ORIGINAL, LOGIT_MASK, LOOKUP_LIST = "original", "logit mask", "lookup list"
MASKED = -1e4  # finite, so that losses of masked classes can be ranked
SAME = 1e-3  # nats; models whose log-probabilities differ by at most this count as equal


def logit_mask(logits: NDArray[Any], classes: NDArray[Any]) -> Floats:
    """Copy of the logits `(n, C)` with the columns of the wholly forgotten `classes` set to MASKED."""
    out = np.array(logits, dtype=np.float64)
    out[:, np.asarray(classes, dtype=int)] = MASKED
    return out


def lookup_list(logits: NDArray[Any], labels: NDArray[Any], forget: NDArray[Any], accuracy: float) -> Floats:
    """Copy of the logits `(n, C)` with the two largest swapped on some of the rows `forget`.

    Correct rows are swapped until the accuracy on forgotten rows is `accuracy`, that of the retrained models; at least
    one row is. Rows with the smallest gap between the two logits come first, since a retrained model errs there first.
    A list over forgotten rows cannot match the accuracy better without a retrained model.
    """
    out = np.array(logits, dtype=np.float64)
    forget = np.asarray(forget)
    if not len(forget) or out.shape[1] < 2:
        return out
    own = out[forget]
    order = np.argsort(own, axis=1)
    first, second = order[:, -1], order[:, -2]
    right = first == np.asarray(labels)[forget]
    count = max(round(float(right.sum()) - accuracy * len(forget)), 1)
    gap = own[np.arange(len(own)), first] - own[np.arange(len(own)), second]
    candidates = np.flatnonzero(right)
    taken = candidates[np.argsort(gap[candidates], kind="stable")][:count]
    own[taken, first[taken]], own[taken, second[taken]] = own[taken, second[taken]], own[taken, first[taken]]
    out[forget] = own
    return out


def negative_controls(
    logits: NDArray[Any],
    labels: NDArray[Any],
    forget: NDArray[Any],
    whole_classes: NDArray[Any],
    retrained_accuracy: float | None,
) -> dict[str, Floats]:
    """Logits `(n, C)` of the negative controls by name.

    `whole_classes`: the classes of which no row is retained. Without any, the logit mask would equal the original and
    is left out. `retrained_accuracy`: that of the retrained models on forgotten rows; None leaves out the lookup list.
    """
    found: dict[str, Floats] = {ORIGINAL: np.asarray(logits, np.float64)}
    if len(whole_classes):
        found[LOGIT_MASK] = logit_mask(logits, whole_classes)
    if retrained_accuracy is not None:
        found[LOOKUP_LIST] = lookup_list(logits, labels, forget, retrained_accuracy)
    return found


def only_hides(original: NDArray[Any], candidate: NDArray[Any], classes: NDArray[Any]) -> bool:
    """Whether the candidate's outputs equal the original's apart from the hidden `classes`, as a logit mask's do.

    Compares the renormalised log-probabilities of the other classes on all given rows, to within SAME. False with
    fewer than two other classes.
    """
    keep = np.setdiff1d(np.arange(np.shape(original)[1]), np.asarray(classes, dtype=int))
    if len(keep) < 2:
        return False
    a, b = (log_softmax(np.asarray(x, np.float64)[:, keep]) for x in (original, candidate))
    return bool(np.abs(a - b).max(initial=0.0) <= SAME)


def control_of(
    logits: NDArray[Any], candidate: NDArray[Any], whole_classes: NDArray[Any], named: Mapping[str, NDArray[Any]]
) -> str | None:
    """Name of the control whose outputs the candidate gives on all rows, or None if there is no such control.

    A candidate that differs from the original only in the hidden `whole_classes` counts as the logit mask.
    """
    for name, control in named.items():
        if np.abs(log_softmax(control) - log_softmax(candidate)).max(initial=0.0) <= SAME:
            return name
    return LOGIT_MASK if len(whole_classes) and only_hides(logits, candidate, whole_classes) else None
