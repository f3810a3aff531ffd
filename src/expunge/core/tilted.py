"""The tilted target: where rows of a forgotten class should go, by the neighbours of their class in the head.

After TREW, Ebrahimpour-Boroojeny, Wang and Sundaram (arXiv 2506.20893). Temperature and PCA rank of the similarity
were not found there; they are arguments here, and the choice of beta is ours.
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
    """`s (C, C)` float64: row y is softmax over the kept classes j != y of cos(w_y, w_j) / tau, elsewhere 0.

    weight   head rows `(C, d)`; they are centred, and with `rank` reduced to so many principal components
    keep     `(C,)` bool, the classes that keep rows

    Raises DataError where a class has no kept neighbour, ValueError for tau <= 0 or rank < 1.
    """
    if tau <= 0 or (rank is not None and rank < 1):
        raise ValueError(f"tau {tau} must be above 0, and rank {rank} at least 1")
    if int(keep.sum()) < 2:
        raise DataError("the tilted target needs two retained classes or more: with one there is nothing to choose")
    w = weight.detach().double()
    w = w - w.mean(0)
    if rank is not None:
        w = w @ torch.linalg.svd(w, full_matrices=False).Vh[:rank].T
    w = torch.nn.functional.normalize(w, dim=1)
    allowed = keep[None, :] & ~torch.eye(len(w), dtype=torch.bool, device=w.device)
    return (w @ w.T / tau).masked_fill(~allowed, -torch.inf).softmax(1)


def tilted_target(logits: Tensor, labels: Tensor, keep: Tensor, s: Tensor, beta: float) -> Tensor:
    """`t_j ~ p_j exp(beta s_yj)` over kept j other than the row's own y, `(b, C)`; beta 0 is the target of DELETE.

    It is the distribution nearest to the masked `p` in KL(t || p) among those with the same mean of s_y.
    """
    out = (logits + beta * s.to(logits)[labels]).masked_fill(~keep, -torch.inf)
    return out.scatter(1, labels[:, None], -torch.inf).softmax(1)


def fit_beta(logits: Tensor, labels: Tensor, keep: Tensor, s: Tensor, mean_output: Tensor) -> float:
    """The beta at which the targets' mean of s equals that of `mean_output (C,)`, by bisection; 0 or more.

    Rows `logits (n, C)` of one class, and the mean probabilities that a teacher which never saw the class gives it.
    Meant for a retained class that plays the forgotten one, so no retrained model is looked at [derived]. 0 where the
    teacher tilts less than the original does, LARGEST_BETA where no beta tilts as much. Raises DataError for rows of
    several classes.
    """
    if not len(labels) or bool((labels != labels[0]).any()):
        raise DataError("beta is fitted on the rows of one class; several were given")
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

    A closed form: nothing is trained. Rows of the class that the original misread are masked but not tilted. The
    addition is made to z, by the least change that moves the retained logits so, and the head is masked [derived].

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
        """Raises ValueError for classes the head does not have, DataError where fewer than two are retained, or where
        the head has more retained classes than independent rows."""
        chosen = class_indices(self.classes, head.num_classes)
        keep = torch.ones(head.num_classes, dtype=torch.bool, device=head.weight.device)
        keep[chosen] = False
        self.similarities_ = similarities(head.weight, keep, self.tau, self.rank)
        rows = head.weight[keep].double()
        wanted = self.beta * self.similarities_[chosen][:, keep]
        # Logits may also all move by the same amount, which changes no probability.
        free = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        shifts = wanted @ torch.linalg.pinv(free).T
        if float((free @ shifts.T - wanted.T).abs().max()) > 1e-6 * max(1.0, self.beta):
            raise DataError(
                f"the head's {len(rows)} retained rows on {head.dim} features are not independent, so no change of "
                "features tilts their logits as asked; use the method trew, which trains the network"
            )
        self.map_ = TiltMap(
            head.weight.double(),
            head.bias.double(),
            torch.tensor(chosen, device=head.weight.device),
            shifts[:, :-1].contiguous(),
        )
        self.head_ = mask_classes(head, chosen)
        return self
