"""JIT: reduce the local Lipschitz constant of the network at forgotten rows, from those rows alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.core.facts import Facts
from expunge.finetune.kinds import need_pixels
from expunge.finetune.loop import Index, Phase, Run, Terms, Updater, single
from expunge.finetune.unseen import stop_at_unseen


@dataclass(eq=False, repr=False, kw_only=True)
class Jit(Updater):
    """Minimise `mean_x mean_j ||f(x) - sg f(x + xi_j)|| / ||xi_j||`, f the logits; Foster et al., arXiv 2402.01401.

    `sg` stops the gradient.

    sigma   standard deviation of the noise, in units of the network's input (pixels after normalisation); x + xi is
            clamped to the range of the batch
    draws   noise draws per row and step

    The loss is a mean over rows, because with the published sum lr depends on the batch size. It uses neither labels
    nor retained rows, and `retain_share` has no effect. With `unseen_rows` training stops after the epoch in which the
    accuracy on forgotten rows is no higher than on those. An epoch is a pass over the forgotten rows. Batch norm:
    running statistics. Plain SGD. Images only.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("images",), "weights", "passes over forgotten rows", "arXiv 2402.01401"
    )
    sigma: float = 0.3
    draws: int = 5
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma <= 0 or self.draws < 1:
            raise ValueError(f"sigma must be above 0 and draws at least 1, got {self.sigma} and {self.draws}")

    def _descend(self, run: Run) -> list[dict[str, float]]:
        return run.train(self.phases(run), stop=stop_at_unseen(run))

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch over forgotten rows. Raises ConfigError for a classifier of texts."""
        preprocess = need_pixels(run)
        generator = torch.Generator().manual_seed(self.seed)

        def loss(rows: Index) -> Terms:
            x = preprocess(run.inputs[rows]).to(run.device)
            here = run.logits_of(x, frozen_norm=True)
            noises = [torch.randn(x.shape, generator=generator).to(x) * self.sigma for _ in range(self.draws)]
            with torch.no_grad():
                there = [run.logits_of((x + xi).clamp(x.min(), x.max()), frozen_norm=True) for xi in noises]
            return {"slope": torch.stack([slope(here, t, xi) for t, xi in zip(there, noises, strict=True)]).mean()}

        return [Phase(epoch, "forgotten", single(run.forgotten(epoch)), loss) for epoch in range(self.epochs)]


def slope(here: Tensor, there: Tensor, xi: Tensor) -> Tensor:
    """Return the mean over rows of ||here - there|| / ||xi||; its gradient is 0 where `here` equals `there`."""
    size = torch.linalg.vector_norm(here - there, dim=1) / torch.linalg.vector_norm(xi.flatten(1), dim=1)
    mean: Tensor = size.mean()
    return mean
