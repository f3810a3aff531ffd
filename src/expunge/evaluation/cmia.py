"""Class-wise membership inference: distinguish a model's outputs on a forgotten class from a retrained model's.

After CMIA of Ebrahimpour-Boroojeny et al. (arXiv 2506.20893). The authors' attack model was not found, so this is a
reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.divergence import Floats, log_softmax
from expunge.evaluation.membership import placements

FLOOR = np.log(1e-6)  # the attacker does not distinguish probabilities below this floor
FOLDS = 5


def neighbour_log_probabilities(logits: NDArray[Any], forgotten: Sequence[int]) -> Floats:
    """Log-probabilities `(n, C - k)` over the remaining classes, renormalised and floored at FLOOR.

    They say how the model distributes the rows over the neighbouring classes. Raises ValueError when fewer than two
    classes remain, when none is forgotten, or when a forgotten class is not among the columns.
    """
    x = np.asarray(logits, np.float64)
    classes = sorted(set(forgotten))
    if x.ndim != 2 or not classes or classes[0] < 0 or classes[-1] >= x.shape[1] or x.shape[1] - len(classes) < 2:
        raise ValueError(
            f"at least two classes must be retained, got logits {x.shape} and the forgotten classes {classes}"
        )
    return np.maximum(log_softmax(np.delete(x, classes, axis=1)), FLOOR)


def cmia_rows(model: NDArray[Any], retrained: NDArray[Any], forgotten: Sequence[int], seed: int = 0) -> Floats | None:
    """Per row `(n,)` the share of the retrained model's outputs that the attacker scores below the model's; ties half.

    Their mean is an AUC in [0, 1]. Target: 0.5, where the two models cannot be distinguished; the value between two
    retrained models is the noise floor.

    The rows belong to the forgotten classes. The attacker sees only probabilities over the remaining classes, so
    masking a class alone reveals nothing. It is a ridge logistic regression, fitted on four fifths of the rows and
    scored on the rest. Both outputs of a row are always in the same fold. Scores are compared within a fold only,
    because those of attackers fitted on different folds are not on one scale.

    None below 10 rows. Raises ValueError for logits of different shapes.
    """
    from sklearn.linear_model import LogisticRegression

    a, b = (neighbour_log_probabilities(x, forgotten) for x in (model, retrained))
    if a.shape != b.shape:
        raise ValueError(
            f"logits of both models must be of the same rows, got {a.shape} of the model and {b.shape} of the "
            "retrained model"
        )
    n = len(a)
    if n < 2 * FOLDS:
        return None
    fold = np.random.default_rng(seed).permutation(n) % FOLDS
    found = np.empty(n)
    for k in range(FOLDS):
        fit, judged = fold != k, fold == k
        x = np.concatenate([a[fit], b[fit]])
        mean, scale = x.mean(0), x.std(0)
        scale[scale == 0] = 1.0
        truth = np.repeat([1, 0], fit.sum())
        attacker = LogisticRegression(max_iter=500).fit((x - mean) / scale, truth)
        mine, theirs = (attacker.decision_function((values[judged] - mean) / scale) for values in (a, b))
        found[judged] = placements(mine, theirs)
    return found
