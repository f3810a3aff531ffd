"""ReGUn: forgotten rows are trained towards the original's predictions for rows that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from expunge.core.facts import Facts
from expunge.finetune.kinds import need_rows
from expunge.finetune.loop import Index, Phase, Run, Terms, Updater, kl
from expunge.finetune.unseen import need_unseen, probabilities, quantile_targets

TARGETS = ("per-class", "quantile")


@dataclass(eq=False, repr=False, kw_only=True)
class ReGUn(Updater):
    """Minimise lam KL(q || student) on forgotten + (1 - lam) CE on retained rows; Mirlach et al., arXiv 2603.11210.

    target   "per-class": q is the original's mean probability over the unseen rows of the row's class. The paper draws
             unseen rows with the class frequencies of the batch and averages over all of them, which moves each row
             towards the frequencies of the batch [derived]. "quantile" [derived]: `unseen.quantile_targets`, which
             preserves the rank of each row's confidence and the proportions of its other classes

    `fit` needs `unseen_rows` of each forgotten class. The method supports only rows of retained classes: for a
    forgotten class the original is equally confident on unseen rows. An attack on the loss with a result near one half
    is no evidence here, because the losses are matched by design. Compare the KL to a retrained model and the
    representations with those of the original instead.

    An epoch is a pass over the longer side. Batch norm: forgotten batches by running statistics. Other arguments as in
    Updater. Also fitted: `targets_ (n_f, C)` float64, in the order of `forget_rows`.
    """

    facts: ClassVar[Facts] = Facts(
        ("rows",),
        ("inputs", "retained rows", "unseen rows"),
        "weights",
        "passes over retained rows",
        "arXiv 2603.11210; quantile: derived",
    )
    target: str = "quantile"
    lam: float = 0.5
    epochs: int = 2
    weight_decay: float = 0.0
    retain_share: float = 0.2
    targets_: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {self.target!r}")
        if not 0 < self.lam <= 1:
            raise ValueError(f"lam must be in (0, 1], got {self.lam}")

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch of retained and forgotten batches. Raises DataError without unseen rows."""
        need_rows(run, "the original is as sure of unseen rows of it as of the forgotten ones")
        need_unseen(run)
        self.targets_ = self._targets(run)
        place = np.zeros(len(run.labels), np.int64)
        place[run.forget] = np.arange(len(run.forget))
        targets = torch.from_numpy(self.targets_).float().to(run.device)

        def loss(retained: Index, forgotten: Index) -> Terms:
            q = targets[torch.from_numpy(place[forgotten]).to(run.device)]
            forget = kl(q, run.logits(forgotten, frozen_norm=True))
            retain = cross_entropy(run.logits(retained), run.y(retained))
            return {"forget": self.lam * forget, "retain": (1 - self.lam) * retain}

        return [Phase(epoch, "retained and forgotten", run.pairs(epoch), loss) for epoch in range(self.epochs)]

    def _targets(self, run: Run) -> NDArray[np.float64]:
        own, of_unseen = run.labels[run.forget], run.labels[run.unseen]
        unseen = probabilities(run, run.original, run.unseen)
        if self.target == "quantile":
            return quantile_targets(probabilities(run, run.original, run.forget), own, unseen, of_unseen)
        means = {y: unseen[of_unseen == y].mean(0) for y in np.unique(own)}
        return np.stack([means[y] for y in own])
