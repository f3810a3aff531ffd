"""Exposure: does a model know the canaries that it was trained on better than those that it never saw?

Carlini et al. 2019 (The Secret Sharer, section 4.2): a canary's exposure is log2 of the number of candidates less log2
of its rank among them by likelihood. The candidates here are canaries that a coin left out, so for a model that was
never trained on the planted ones every rank is equally likely: the test needs no retrained model and no assumption.
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
    """Rows and wrong labels `(N,)` each: of planted canaries, and of the pictures of those that were never planted."""

    planted: NDArray[Any]
    planted_labels: NDArray[Any]
    others: NDArray[Any]
    other_labels: NDArray[Any]

    def among(self, counted: NDArray[Any]) -> CanaryRows:
        """Those on rows of the mask `counted (n,)`, as positions among these rows."""
        position, a, b = np.cumsum(counted) - 1, counted[self.planted], counted[self.others]
        return CanaryRows(
            position[self.planted[a]], self.planted_labels[a], position[self.others[b]], self.other_labels[b]
        )


def canary_losses(logits: NDArray[Any], rows: CanaryRows) -> tuple[Floats, Floats]:
    """Cross-entropy of the wrong labels, nats: of planted canaries `(N,)` and of the others `(M,)`."""
    x = np.asarray(logits)
    return loss(x[rows.planted], rows.planted_labels), loss(x[rows.others], rows.other_labels)


def exposures(planted: NDArray[Any], others: NDArray[Any]) -> Floats:
    """Bits per planted canary `(N,)`: log2(M + 1) - log2(rank), its rank among the M others by loss, from 1, ties half.

    From 0, the least likely, to log2(M + 1), more likely than all others; about 1.44 on average, log2(e), for a model
    that never saw it.
    """
    a, b = np.asarray(planted, np.float64), np.sort(np.asarray(others, np.float64))
    below, upto = np.searchsorted(b, a, side="left"), np.searchsorted(b, a, side="right")
    return np.asarray(np.log2(len(b) + 1) - np.log2(1 + (below + upto) / 2))


def canary_placements(logits: NDArray[Any], rows: CanaryRows) -> Floats:
    """Per planted canary `(N,)` the share of the others that the model finds less likely, ties half; its mean is an
    AUC, 0.5 for a model that never saw them."""
    planted, others = canary_losses(logits, rows)
    return placements(-planted, -others)


def canary_block(logits: NDArray[Any], rows: CanaryRows | None) -> dict[str, Any] | None:
    """What a report shows of one model: counts, mean exposure, and one-sided p-values of Mann and Whitney's test.

    `p_remembered` is small where the planted canaries are known better than the others, `p_overshot` where worse, as
    after labels were driven away. Each is the chance of such ranks for a model that never saw the planted ones.
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
