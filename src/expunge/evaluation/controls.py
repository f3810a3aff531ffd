"""Models that forgot nothing, made from what is stored of the original. In every run they must fail what is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.divergence import Floats, log_softmax

ORIGINAL, LOGIT_MASK, LOOKUP_LIST = "original", "logit mask", "lookup list"
MASKED = -1e4  # finite, so that losses of masked classes can be ranked
SAME = 1e-3  # nats; largest difference of log-probabilities that counts as none


def logit_mask(logits: NDArray[Any], classes: NDArray[Any]) -> Floats:
    """The logits `(n, C)` with the wholly forgotten `classes` hidden; unchanged where there are none."""
    out = np.array(logits, dtype=np.float64)
    out[:, np.asarray(classes, dtype=int)] = MASKED
    return out


def lookup_list(logits: NDArray[Any], labels: NDArray[Any], forget: NDArray[Any], accuracy: float) -> Floats:
    """The logits `(n, C)` with the two top answers swapped on some of the rows `forget`, and nothing else changed.

    As many rows that are answered rightly are swapped as bring the accuracy on forgotten rows to `accuracy`, that of
    the retrained models, at least one; those where the two answers are nearest come first, since a retrained model errs
    there first. This is the best that a list over forgotten rows can do about accuracy without a retrained model.
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
    """Name -> logits `(n, C)` of the controls. `whole_classes` are the classes of which no row is retained; without
    them the logit mask would be the original and is left out. `retrained_accuracy`: on forgotten rows."""
    found: dict[str, Floats] = {ORIGINAL: np.asarray(logits, np.float64)}
    if len(whole_classes):
        found[LOGIT_MASK] = logit_mask(logits, whole_classes)
    if retrained_accuracy is not None:
        found[LOOKUP_LIST] = lookup_list(logits, labels, forget, retrained_accuracy)
    return found


def only_hides(original: NDArray[Any], candidate: NDArray[Any], classes: NDArray[Any]) -> bool:
    """Whether the candidate says what the original says, but for hidden `classes`: a control, whatever its name.

    Compares log-probabilities of the other classes, renormalised, on all rows given; without classes, of all.
    """
    keep = np.setdiff1d(np.arange(np.shape(original)[1]), np.asarray(classes, dtype=int))
    if len(keep) < 2:
        return False
    a, b = (log_softmax(np.asarray(x, np.float64)[:, keep]) for x in (original, candidate))
    return bool(np.abs(a - b).max(initial=0.0) <= SAME)


def control_of(
    logits: NDArray[Any], candidate: NDArray[Any], whole_classes: NDArray[Any], named: Mapping[str, NDArray[Any]]
) -> str | None:
    """Which control the candidate is, by what it says; None where it is none of them."""
    for name, control in named.items():
        if np.abs(log_softmax(control) - log_softmax(candidate)).max(initial=0.0) <= SAME:
            return name
    return LOGIT_MASK if len(whole_classes) and only_hides(logits, candidate, whole_classes) else None
