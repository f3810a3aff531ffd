"""The collapse guard of every method: accuracy on held-out retained rows, compared with the original's.

The rows are those that `split.validation` holds out, which enter no metric (all retained rows if it is 0), at most ROWS
of them. Both the original and the method were trained on them, so a method that keeps the original's knowledge loses
nothing here, and accuracy that it loses here is lost on test rows too. No retrained model is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.methods.inputs import FitInputs
from expunge.methods.unlearned import UnlearnedModel
from expunge.system.errors import CollapseError

MAX_DROP = 0.03  # share of retained rows; all defaults lose less on the models of docs/finetune.md
ROWS = 2000
BATCH = 500


@dataclass(frozen=True)
class RetainedAccuracy:
    """Accuracies of original and method on the same rows, in [0, 1].

    `error`: standard error of their difference, from the rows on which only one is correct (McNemar's counts).
    """

    before: float
    after: float
    error: float
    rows: int

    @property
    def drop(self) -> float:
        """The accuracy that the method loses."""
        return self.before - self.after

    def to_json(self) -> dict[str, Any]:
        """Return what `fit.json` holds under `held_out`."""
        return {"before": self.before, "after": self.after, "error": self.error, "rows": self.rows}


def guard_rows(request: FitInputs) -> np.ndarray:
    """Retained rows that the guard uses, in ascending order and evenly spaced if there are more than ROWS.

    Corrected rows are left out, because the original was trained on their old labels.
    """
    retained = np.setdiff1d(request.retain_rows, request.forget_rows)
    validation = np.intersect1d(retained, request.validation_rows)
    rows = validation if len(validation) else retained
    return rows[np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(np.int64)]


@torch.no_grad()
def logits_of(unlearned: UnlearnedModel, request: FitInputs, rows: np.ndarray) -> Tensor:
    """Return the logits `(n, C)` of these rows: from stored features, or through the network if it was changed."""
    if unlearned.classifier is None:
        return unlearned.logits(torch.from_numpy(request.store.z(rows)))
    network, parts = unlearned.classifier, np.array_split(rows, math.ceil(len(rows) / BATCH))
    return torch.cat([network(request.dataset.inputs(part)).cpu() for part in parts])


@torch.no_grad()
def retained_accuracy(request: FitInputs, unlearned: UnlearnedModel) -> RetainedAccuracy:
    """Accuracy of the original and of `unlearned` on the guard's rows."""
    rows = guard_rows(request)
    y, z = torch.from_numpy(request.labels[rows]), torch.from_numpy(request.store.z(rows))
    before = request.head.logits(z).argmax(1) == y
    after = logits_of(unlearned, request, rows).argmax(1) == y
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    # Standard error of the mean of values that are +1 (lost), -1 (gained) or 0.
    n = len(rows)
    error = math.sqrt(max(lost + gained - (lost - gained) ** 2 / n, 0.0)) / n
    return RetainedAccuracy(float(before.double().mean()), float(after.double().mean()), error, n)


def refuse_lost(name: str, accuracy: RetainedAccuracy, max_drop: float) -> None:
    """Raise CollapseError if the drop exceeds `max_drop` by more than two standard errors, or is not a number."""
    if not accuracy.drop - 2 * accuracy.error <= max_drop:
        raise CollapseError(
            f"{name}: accuracy on {accuracy.rows:,} held-out retained rows fell from {100 * accuracy.before:.1f} to "
            f"{100 * accuracy.after:.1f} %, more than {100 * max_drop:g} points; lower its lr or factor, or set "
            f"fit.{name}.max_drop to accept it"
        )
