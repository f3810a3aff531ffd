"""Projected-gradient unlearning: steps orthogonal to the inputs of every layer on retained rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.core.facts import Facts
from expunge.finetune.layer_inputs import LayerInputs
from expunge.finetune.loop import RELABEL, Index, Phase, Run, Terms, Updater, single
from expunge.finetune.steps import Factors
from expunge.finetune.unseen import stop_at_unseen

TINY = 1e-10  # eigenvalues below this share of the largest are rounding errors and count as zero


@dataclass(eq=False, repr=False, kw_only=True)
class ProjectedGradient(Updater):
    """PGU: steps `W <- W - lr G (I - P)`, P the projection onto a layer's inputs on retained rows; arXiv 2312.04095.

    From Hoang et al. The loss is on forgotten rows alone: `mean -log(1 - p_y + offset) - entropy_weight mean H(p)`.

    energy            share of the second moment that P keeps (the paper uses singular values instead). At 1, P covers
                      the whole span, and the outputs of the retained rows that were used cannot change
    moment_rows       number of retained rows whose inputs are used, drawn with `seed`
    offset            keeps the loss finite
    entropy_weight    weight of the entropy of the predictions

    Weights of convolutions and linear layers are updated; biases and batch norm are not. With `unseen_rows` training
    stops once the accuracy on forgotten rows is no higher than on those. Where the inputs span all directions and
    `energy` is 1, no weight changes. An epoch is a pass over the forgotten rows; `retain_share` has no effect. Weight
    decay must be 0, because it would change weights within the span. Also fitted: `ranks_`, name -> (rank of P,
    directions), summed over groups.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("inputs", "retained rows"), "weights", "passes over forgotten rows", "arXiv 2312.04095"
    )
    energy: float = 0.99
    moment_rows: int = 5000
    offset: float = 0.05
    entropy_weight: float = 0.2
    epochs: int = 20
    factors: ClassVar[Factors] = Factors(sgd=0.5)
    momentum: float = 0.0
    weight_decay: float = 0.0
    ranks_: dict[str, tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.energy <= 1 or self.moment_rows < 1 or self.offset <= 0:
            raise ValueError(
                f"energy must be in (0, 1], moment_rows at least 1 and offset above 0, got {self.energy}, "
                f"{self.moment_rows} and {self.offset}"
            )
        if self.weight_decay:
            raise ValueError(
                f"weight_decay must be 0, because it would move weights within the span, got {self.weight_decay}"
            )

    def _descend(self, run: Run) -> list[dict[str, float]]:
        stop = stop_at_unseen(run)
        rows = run.rng(RELABEL).permutation(run.retain)[: self.moment_rows]
        free = {name: outside(m, self.energy) for name, m in input_moments(run, rows).items()}
        self.ranks_ = {
            name: (round(m.shape[0] * m.shape[1] - float(m.diagonal(dim1=1, dim2=2).sum())), m.shape[0] * m.shape[1])
            for name, m in free.items()
        }
        weights = {name: p for name, p in run.student.named_parameters() if name in free}

        def project(parameters: Mapping[str, nn.Parameter]) -> None:
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    parameter.grad.copy_(projected(parameter.grad, free[name]))

        return run.train(self.phases(run), weights, adjust=project, stop=stop)

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch over forgotten rows; the projection is applied to its gradients."""

        def loss(rows: Index) -> Terms:
            log_p = F.log_softmax(run.logits(rows, frozen_norm=True), 1)
            p = log_p.exp()
            true = p.gather(1, run.y(rows)[:, None]).squeeze(1)
            return {
                "forget": -(1 - true + self.offset).log().mean(),
                "entropy": self.entropy_weight * (p * log_p).sum(1).mean(),
            }

        return [Phase(epoch, "forgotten", single(run.forgotten(epoch)), loss) for epoch in range(self.epochs)]


@torch.no_grad()
def input_moments(run: Run, rows: Index) -> dict[str, Tensor]:
    """Return the sum of h h' over the inputs h of each convolution and linear layer, by the name of its weight.

    The sums are `(groups, k, k)` float64, of the original on `rows`, see LayerInputs.
    """
    total: dict[str, Tensor] = {}

    def see(name: str, h: Tensor, count: int) -> None:
        total[name] = total.get(name, 0.0) + torch.einsum("ngi,ngj->gij", h, h)

    with LayerInputs(run.original, see):
        for part in run.split(rows):
            run.original(run.inputs[part])
    return total


def outside(moment: Tensor, energy: float) -> Tensor:
    """Return I - P of each group, `(groups, k, k)`; P has the fewest leading directions with the share `energy`."""
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp_min(0)
    result = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device).repeat(len(moment), 1, 1)
    for group in range(len(moment)):
        squares = values[group].flip(0)
        present = int((squares > TINY * squares[0]).sum())
        rank = int((squares.cumsum(0) < energy * squares.sum()).sum()) + 1 if energy < 1 else present
        basis = vectors[group][:, len(squares) - min(rank, present) :]
        result[group] -= basis @ basis.T
    return result


def projected(gradient: Tensor, free: Tensor) -> Tensor:
    """Return G (I - P) for a gradient `(out, in / groups, ...)` and `free (groups, k, k)`."""
    by_group = gradient.reshape(len(free), -1, free.shape[-1]).double()
    return (by_group @ free).reshape(gradient.shape).to(gradient)
