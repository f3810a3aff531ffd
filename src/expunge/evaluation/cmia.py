"""Class-wise membership inference: does a model treat a forgotten class as a retrained model treats an unseen one?

After CMIA of Ebrahimpour-Boroojeny et al. (arXiv 2506.20893), whose attack model was not found: a reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.divergence import Floats, log_softmax
from expunge.evaluation.membership import placements

FLOOR = np.log(1e-6)  # smaller probabilities are all one to the attacker
FOLDS = 5


def neighbour_log_probabilities(logits: NDArray[Any], forgotten: Sequence[int]) -> Floats:
    """log p `(n, C - k)` over the classes that stay, renormalised: how the rows are given to neighbouring classes.

    Raises ValueError when fewer than two classes stay, or a forgotten class is not among the columns.
    """
    x = np.asarray(logits, np.float64)
    gone = sorted(set(forgotten))
    if x.ndim != 2 or not gone or gone[0] < 0 or gone[-1] >= x.shape[1] or x.shape[1] - len(gone) < 2:
        raise ValueError(f"logits {x.shape} and forgotten classes {gone}: two classes at least must stay")
    return np.maximum(log_softmax(np.delete(x, gone, axis=1)), FLOOR)


def cmia(model: NDArray[Any], retrained: NDArray[Any], forgotten: Sequence[int], seed: int = 0) -> float | None:
    """AUC of an attacker who tells the model's logits `(n, C)` from the retrained model's on the same rows.

    Range [0, 1]; 0.5: the two cannot be told apart, the target; 1: each row gives the model away. Another retrained
    seed gives the floor. None below 10 rows. See `cmia_rows`, of which this is the mean.
    """
    rows = cmia_rows(model, retrained, forgotten, seed)
    return None if rows is None else float(rows.mean())


def cmia_rows(model: NDArray[Any], retrained: NDArray[Any], forgotten: Sequence[int], seed: int = 0) -> Floats | None:
    """Per row `(n,)` the share of the retrained model's outputs that look less like the model's than the row's own,
    ties half.

    The rows are of the forgotten classes; the attacker sees only probabilities over the classes that stay, so a masked
    class gives nothing away by itself. A ridge logistic regression is fitted on four fifths of the rows and judged on
    the rest, both outputs of a row always on the same side. Folds are compared within themselves, never pooled: their
    attackers' scores are not on one scale.

    Raises ValueError for logits of different shapes.
    """
    from sklearn.linear_model import LogisticRegression

    a, b = (neighbour_log_probabilities(x, forgotten) for x in (model, retrained))
    if a.shape != b.shape:
        raise ValueError(f"logits {a.shape} of the model and {b.shape} of the retrained one are of different rows")
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
