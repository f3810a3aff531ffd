"""The tilted target: the output distribution for rows of a forgotten class, by the similarity of classes in the head.

After TREW, Ebrahimpour-Boroojeny, Wang and Sundaram (arXiv 2506.20893). The paper does not state the temperature and
the PCA rank of the similarity, so they are arguments here. The choice of beta is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from expunge.core.estimator import Estimator
from expunge.core.facts import Facts
from expunge.core.head import LinearHead, class_indices
from expunge.core.logit_mask import mask_classes
from expunge.core.maps import TiltMap
from expunge.system.errors import DataError

LARGEST_BETA = 1e4


def similarities(weight: Tensor, keep: Tensor, tau: float = 1.0, rank: int | None = None) -> Tensor:
    """Return `s (C, C)` float64: row y is the softmax of cos(w_y, w_j) / tau over the retained j != y, elsewhere 0.

    weight   head rows `(C, d)`; they are centred, and with `rank` reduced to that many principal components
    keep     `(C,)` bool, the retained classes

    Raises DataError where fewer than two classes are retained, ValueError for tau <= 0 or rank < 1.
    """
    if tau <= 0 or (rank is not None and rank < 1):
        raise ValueError(f"tau {tau} must be above 0, and rank {rank} at least 1")
    if int(keep.sum()) < 2:
        raise DataError("the tilted target needs at least two retained classes")
    w = weight.detach().double()
    w = w - w.mean(0)
    if rank is not None:
        w = w @ torch.linalg.svd(w, full_matrices=False).Vh[:rank].T
    w = torch.nn.functional.normalize(w, dim=1)
    allowed = keep[None, :] & ~torch.eye(len(w), dtype=torch.bool, device=w.device)
    return (w @ w.T / tau).masked_fill(~allowed, -torch.inf).softmax(1)


def tilted_target(logits: Tensor, labels: Tensor, keep: Tensor, s: Tensor, beta: float) -> Tensor:
    """Return the target `t_j ~ p_j exp(beta s_yj)` over retained j other than the row's own class y, `(b, C)`.

    beta 0 gives the target of DELETE. Among the distributions with the same mean of s_y, it is the one nearest to the
    masked `p` in KL(t || p).
    """
    out = (logits + beta * s.to(logits)[labels]).masked_fill(~keep, -torch.inf)
    return out.scatter(1, labels[:, None], -torch.inf).softmax(1)


def fit_beta(logits: Tensor, labels: Tensor, keep: Tensor, s: Tensor, mean_output: Tensor) -> float:
    """Return the beta >= 0 at which the targets' mean of s equals that of `mean_output (C,)`, by bisection [derived].

    `logits (n, C)` are those of rows of one class, and `mean_output` is the mean probability that a teacher which never
    saw the class gives these rows. The class is meant to be a retained one in the role of the forgotten class, so that
    no retrained model is used. Returns 0 where the teacher's mean of s is below the original's, LARGEST_BETA where no
    beta reaches it. Raises DataError for rows of several classes.
    """
    if not len(labels) or bool((labels != labels[0]).any()):
        raise DataError("beta is fitted on the rows of a single class, but the rows are of none or of several")
    score = s[labels[0]].double()
    q = mean_output.double().masked_fill(~keep, 0.0)
    q[labels[0]] = 0.0
    wanted = float((q / q.sum() * score).sum())

    def mean(beta: float) -> float:
        return float((tilted_target(logits.double(), labels, keep, s, beta).mean(0) * score).sum())

    low, high = 0.0, LARGEST_BETA
    if mean(low) >= wanted:
        return low
    if mean(high) <= wanted:
        return high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < wanted else (low, middle)
    return (low + high) / 2


class Tilt(Estimator):
    """Mask the forgotten classes, and add `beta s_y` to the logits of rows that the original assigns to one of them.

    This is a closed form without training. Rows of a forgotten class that the original assigns to another class are
    masked but not tilted. The map adds to z the smallest vector that changes the retained logits by `beta s_y`, and the
    head is masked [derived].

    Fitted: `map_`, a TiltMap; `head_`; `similarities_ (C, C)`.
    """

    facts: ClassVar[Facts] = Facts(("classes",), ("head",), "map", "closed form", "arXiv 2506.20893 (target only)")
    map_: TiltMap
    head_: LinearHead
    similarities_: Tensor

    def __init__(
        self, classes: int | Sequence[int], beta: float = 10.0, tau: float = 1.0, rank: int | None = None
    ) -> None:
        self.classes = classes
        self.beta = beta
        self.tau = tau
        self.rank = rank

    def fit(self, head: LinearHead) -> Tilt:
        """Fit from the head.

        Raises ValueError for classes that the head does not have, DataError where fewer than two are retained or the
        retained head rows are linearly dependent.
        """
        chosen = class_indices(self.classes, head.num_classes)
        keep = torch.ones(head.num_classes, dtype=torch.bool, device=head.weight.device)
        keep[chosen] = False
        self.similarities_ = similarities(head.weight, keep, self.tau, self.rank)
        rows = head.weight[keep].double()
        wanted = self.beta * self.similarities_[chosen][:, keep]
        # The column of ones lets all logits change by the same amount, which does not change the probabilities.
        free = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        shifts = wanted @ torch.linalg.pinv(free).T
        if float((free @ shifts.T - wanted.T).abs().max()) > 1e-6 * max(1.0, self.beta):
            raise DataError(
                f"the head's {len(rows)} retained rows on {head.dim} features are not linearly independent, so no "
                "change of the features can tilt their logits as asked; use the method trew, which trains the "
                "network"
            )
        self.map_ = TiltMap(
            head.weight.double(),
            head.bias.double(),
            torch.tensor(chosen, device=head.weight.device),
            shifts[:, :-1].contiguous(),
        )
        self.head_ = mask_classes(head, chosen)
        return self
