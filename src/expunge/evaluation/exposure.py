"""Exposure: whether a model ranks the canaries that it was trained on above those that it never saw.

Carlini et al. 2019 (The Secret Sharer, section 4.2): a canary's exposure is log2 of the number of candidates minus log2
of its rank among them by likelihood. The candidates here are canaries that were left out at random. For a model that
was never trained on the planted ones every rank is therefore equally likely, so the test needs no retrained model and
no assumption about the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.divergence import Floats
from expunge.evaluation.membership import loss, placements


@dataclass(frozen=True)
class CanaryRows:
    """Rows and wrong labels of the planted canaries `(N,)`, and of those that were drawn but never planted `(M,)`."""

    planted: NDArray[Any]
    planted_labels: NDArray[Any]
    others: NDArray[Any]
    other_labels: NDArray[Any]

    @property
    def rows(self) -> NDArray[Any]:
        """Every row that is named here `(N + M,)`."""
        return np.concatenate([self.planted, self.others])

    def among(self, scored: NDArray[Any]) -> CanaryRows:
        """The canaries on rows of the mask `scored (n,)`, with rows renumbered as positions among these."""
        position, a, b = np.cumsum(scored) - 1, scored[self.planted], scored[self.others]
        return CanaryRows(
            position[self.planted[a]], self.planted_labels[a], position[self.others[b]], self.other_labels[b]
        )


def canary_losses(logits: NDArray[Any], rows: CanaryRows) -> tuple[Floats, Floats]:
    """Cross-entropy of the wrong labels in nats, of planted canaries `(N,)` and of the others `(M,)`."""
    x = np.asarray(logits)
    return loss(x[rows.planted], rows.planted_labels), loss(x[rows.others], rows.other_labels)


def exposures(planted: NDArray[Any], others: NDArray[Any]) -> Floats:
    """Exposure of each planted canary in bits `(N,)`: log2(M + 1) - log2(rank).

    `planted (N,)` and `others (M,)`: losses. The rank is that among the M others by loss, from 1; ties count half.
    Range [0, log2(M + 1)], where 0 is the least likely canary. For a model that never saw it the mean is about log2(e),
    1.44 bits.
    """
    a, b = np.asarray(planted, np.float64), np.sort(np.asarray(others, np.float64))
    below, upto = np.searchsorted(b, a, side="left"), np.searchsorted(b, a, side="right")
    return np.asarray(np.log2(len(b) + 1) - np.log2(1 + (below + upto) / 2))


def canary_placements(logits: NDArray[Any], rows: CanaryRows) -> Floats:
    """Per planted canary `(N,)` the share of the others that the model finds less likely; ties count half.

    The mean is an AUC, 0.5 on average for a model that never saw the canaries.
    """
    planted, others = canary_losses(logits, rows)
    return placements(-planted, -others)


def canary_block(logits: NDArray[Any], rows: CanaryRows | None) -> dict[str, Any] | None:
    """Canary results of one model for a report: counts, mean exposure, and one-sided p-values of Mann and Whitney.

    `p_remembered` is small if the planted canaries are more likely than the others. `p_overshot` is small if they are
    less likely, as after training against their labels. Each is the probability of such ranks for a model that never
    saw the planted ones. None without canaries on either side.
    """
    if rows is None or not len(rows.planted) or not len(rows.others):
        return None
    from scipy.stats import mannwhitneyu

    planted, others = canary_losses(logits, rows)
    return {
        "planted": len(planted),
        "others": len(others),
        "exposure": float(exposures(planted, others).mean()),
        "exposure_max": float(np.log2(len(others) + 1)),
        "p_remembered": float(mannwhitneyu(-planted, -others, alternative="greater").pvalue),
        "p_overshot": float(mannwhitneyu(-planted, -others, alternative="less").pvalue),
    }
