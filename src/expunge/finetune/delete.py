"""DELETE: distillation of the original's probabilities without the forgotten class, on forgotten rows alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softmax

from expunge.core.facts import Facts
from expunge.finetune.loop import Index, Phase, Run, Terms, Updater, kl, single
from expunge.finetune.steps import Factors
from expunge.system.errors import DataError


@dataclass(eq=False, repr=False, kw_only=True)
class Delete(Updater):
    """Minimise KL(softmax(mask(original logits)) || student) on forgotten rows; Zhou et al., arXiv 2503.23751.

    The mask sets the row's own class to -inf, so the target is the original's distribution over the other classes,
    renormalised. Classes without a retained row are masked too [derived: otherwise, of several forgotten classes one
    would be a target for another]. An epoch is a pass over the forgotten rows; retained rows are not used and
    `retain_share` has no effect. The method is for whole classes: for rows of retained classes its target is a wrong
    class. Batch norm: running statistics. Other arguments as in Updater.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes",), ("inputs",), "weights", "passes over forgotten rows", "arXiv 2503.23751"
    )
    epochs: int = 2
    factors: ClassVar[Factors] = Factors(sgd=0.0003)

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch over forgotten rows. Raises DataError if no other class is retained."""
        keep = torch.zeros(run.original.card.num_classes, dtype=torch.bool, device=run.device)
        keep[run.retained_classes] = True
        if not np.all([np.any(run.retained_classes != c) for c in np.unique(run.labels[run.forget])]):
            raise DataError("DELETE needs retained rows of a class other than the forgotten ones")

        def loss(rows: Index) -> Terms:
            target = masked_target(run.ask(run.original, rows), run.y(rows), keep)
            return {"forget": kl(target, run.logits(rows, frozen_norm=True))}

        return [Phase(epoch, "forgotten", single(run.forgotten(epoch)), loss) for epoch in range(self.epochs)]


def masked_target(logits: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
    """Return the softmax `(b, C)` of `logits` without each row's own class and the classes outside `keep (C,)`."""
    out = logits.masked_fill(~keep, -torch.inf)
    return softmax(out.scatter(1, labels[:, None], -torch.inf), 1)
