"""Unseen rows, on which the original was never trained: targets and a stopping rule from its predictions for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.finetune.loop import Index, Run
from expunge.models.classifier import Classifier
from expunge.system.errors import DataError


def need_unseen(run: Run) -> None:
    """Raise DataError unless unseen rows of every class of forgotten rows are given."""
    name = type(run.options).__name__
    if not len(run.unseen):
        raise DataError(
            f"{name} needs unseen_rows, which are rows that the model was never trained on and that no metric uses"
        )
    missing = np.setdiff1d(run.labels[run.forget], run.labels[run.unseen])
    if len(missing):
        raise DataError(
            f"{name}: there is no unseen row of class {missing[0]}, but forgotten rows have this class; give unseen "
            "rows of every forgotten class"
        )


def probabilities(run: Run, model: Classifier, rows: Index) -> NDArray[np.float64]:
    """Return the probabilities `(n, C)` float64 of a model in eval mode."""
    parts = [run.ask(model, part).double().softmax(1).cpu().numpy() for part in run.split(rows)]
    return np.concatenate(parts)


def quantile_targets(
    p: NDArray[np.float64], labels: Index, unseen: NDArray[np.float64], unseen_labels: Index
) -> NDArray[np.float64]:
    """Return targets `(n, C)` whose true-class probabilities are distributed like those of unseen rows, per class.

    `p (n, C)` and `unseen (m, C)` are the original's probabilities of forgotten and of unseen rows. A row with the
    quantile u among the forgotten rows of its class gets the true-class probability G^-1(u), with G the distribution
    for unseen rows of the class. Its other probabilities are rescaled in proportion, or made equal where all were 0
    [derived: monotone transport].
    """
    target = np.empty_like(p)
    classes = p.shape[1]
    for y in np.unique(labels):
        mine = np.flatnonzero(labels == y)
        theirs = np.sort(unseen[unseen_labels == y, y])
        rank = np.empty(len(mine))
        rank[np.argsort(p[mine, y], kind="stable")] = np.arange(len(mine))
        place = np.floor((rank + 0.5) / len(mine) * len(theirs)).astype(np.int64)
        wanted = theirs[np.minimum(place, len(theirs) - 1)]
        others = np.arange(classes) != y
        left = p[np.ix_(mine, others)]
        total = left.sum(1, keepdims=True)
        shares = np.where(total > 0, left / np.where(total > 0, total, 1.0), 1.0 / (classes - 1))
        target[np.ix_(mine, others)] = shares * (1 - wanted[:, None])
        target[mine, y] = wanted
    return target


def stop_at_unseen(run: Run) -> Callable[[], bool] | None:
    """Return the stopping rule `no_better_than_unseen` of the run, or None without unseen rows.

    Raises DataError if a class of forgotten rows has no unseen row.
    """
    if not len(run.unseen):
        return None
    need_unseen(run)
    return lambda: no_better_than_unseen(run)


def no_better_than_unseen(run: Run) -> bool:
    """Whether accuracy on forgotten rows is at most that on unseen rows, weighted to the same class frequencies."""
    student, training = run.student.eval(), run.student.training
    with torch.no_grad():
        hits = {
            name: np.concatenate([run.ask(student, part).argmax(1).cpu().numpy() for part in run.split(rows)])
            == run.labels[rows]
            for name, rows in (("forget", run.forget), ("unseen", run.unseen))
        }
    student.train(training)
    classes, counts = np.unique(run.labels[run.forget], return_counts=True)
    of_unseen = [hits["unseen"][run.labels[run.unseen] == c].mean() for c in classes]
    return bool(hits["forget"].mean() <= np.average(of_unseen, weights=counts))
