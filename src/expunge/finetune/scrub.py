"""SCRUB: distillation that keeps close to the original on retained rows and moves away from it on forgotten ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy, softmax

from expunge.core.facts import Facts
from expunge.finetune.loop import Index, Phase, Run, Terms, Updater, kl, single
from expunge.finetune.steps import Factors


@dataclass(eq=False, repr=False, kw_only=True)
class Scrub(Updater):
    """Alternate between ascent on forgotten and descent on retained rows; Kurmanji et al., arXiv 2302.09880, eq. 3.

    Each of the first `max_epochs` epochs begins with a pass over forgotten rows that maximises
    KL(original || student). Every epoch then passes over retained rows and minimises
    alpha KL(original || student) + gamma CE. KL is computed at `temperature` T and multiplied by T^2. With
    `max_epochs` 0 this is distillation on retained rows. The variant with rewinding, which needs held-out rows similar
    to the forgotten ones, is not implemented.

    Batch norm: every batch by its own statistics, as in the published code. With running statistics student and
    original would agree at the start, where the gradient of KL vanishes, and later diverge without bound. The pass over
    retained rows that follows restores the running statistics. Other arguments as in Updater.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("inputs", "retained rows"), "weights", "passes over retained rows", "arXiv 2302.09880"
    )
    epochs: int = 2
    max_epochs: int = 1
    alpha: float = 0.5
    gamma: float = 1.0
    temperature: float = 4.0
    factors: ClassVar[Factors] = Factors(sgd=0.02)
    retain_share: float = 0.5

    def phases(self, run: Run) -> list[Phase]:
        """Return the phases in order: in the first `max_epochs` epochs a forgotten one, in each a retained one."""

        def distance(rows: Index, logits: Tensor) -> Tensor:
            t = self.temperature
            return kl(softmax(run.ask(run.original, rows) / t, 1), logits / t) * t * t

        def max_step(rows: Index) -> Terms:
            return {"forget": -distance(rows, run.logits(rows))}

        def min_step(rows: Index) -> Terms:
            logits = run.logits(rows)
            return {
                "retain_kl": self.alpha * distance(rows, logits),
                "retain_ce": self.gamma * cross_entropy(logits, run.y(rows)),
            }

        phases = []
        for epoch in range(self.epochs):
            if epoch < self.max_epochs:
                phases.append(Phase(epoch, "forgotten", single(run.forgotten(epoch)), max_step))
            phases.append(Phase(epoch, "retained", single(run.retained(epoch)), min_step))
        return phases
