"""Partially blinded unlearning: ascent on forgotten rows, with a Fisher-weighted penalty on changes of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from expunge.core.facts import Facts
from expunge.finetune.loop import Index, Phase, Run, Terms, Updater, single
from expunge.finetune.ssd import per_sample_fisher
from expunge.finetune.steps import Factors
from expunge.finetune.unseen import stop_at_unseen


@dataclass(eq=False, repr=False, kw_only=True)
class PartiallyBlinded(Updater):
    """PBU, arXiv 2403.16246: minimise `-CE(forgotten) + fisher d'F d + norm ||d||^2`, d the change of the weights.

    F is the diagonal Fisher matrix of the original on forgotten rows. The published ratio is 1 : .14 : 5.5 with Adam,
    whose first steps have the same length for every size of the gradient. With SGD, as here, that `norm` keeps a
    network that fits its rows from changing (measured on digits), so the default is smaller. Where the penalties are
    too weak, CE is unbounded; a row whose loss has reached `cap` (nats) no longer contributes, and None is as
    published. With `unseen_rows` training stops once the accuracy on forgotten rows is no higher than on those.
    Without them the student becomes confident in wrong classes, unlike a retrained model. It uses no retained rows and
    no weight decay. An epoch is a pass over the forgotten rows. Batch norm: running statistics.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("inputs",), "weights", "passes over forgotten rows", "arXiv 2403.16246"
    )
    fisher: float = 0.14
    norm: float = 0.05
    cap: float | None = 6.0
    epochs: int = 5
    factors: ClassVar[Factors] = Factors(sgd=0.3)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fisher < 0 or self.norm < 0:
            raise ValueError(f"fisher and norm must not be negative, got {self.fisher} and {self.norm}")

    def _descend(self, run: Run) -> list[dict[str, float]]:
        return run.train(self.phases(run), stop=stop_at_unseen(run))

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch: forgotten rows, and the penalty on the change of the weights."""
        importance = per_sample_fisher(run.original, run.inputs, run.labels, run.forget)
        strength = {name: (self.fisher * f + self.norm).float() for name, f in importance.items()}
        start = dict(run.original.named_parameters())

        def loss(rows: Index) -> Terms:
            losses = cross_entropy(run.logits(rows, frozen_norm=True), run.y(rows), reduction="none")
            lose = losses.mean() if self.cap is None else losses.clamp(max=self.cap).mean()
            return {"forget": -lose, "stay": penalty(dict(run.student.named_parameters()), start, strength)}

        return [Phase(epoch, "forgotten", single(run.forgotten(epoch)), loss) for epoch in range(self.epochs)]


def penalty(parameters: Mapping[str, Tensor], start: Mapping[str, Tensor], strength: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of strength (w - w0)^2 over all weights."""
    return torch.stack([(strength[n] * (p - start[n]).square()).sum() for n, p in parameters.items()]).sum()
