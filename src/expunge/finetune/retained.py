"""Fine-tuning on retained rows, the baseline that relies on the network forgetting rows it no longer sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import cross_entropy

from expunge.core.facts import Facts
from expunge.finetune.loop import Index, Phase, Run, Terms, Updater, single
from expunge.finetune.steps import Factors


@dataclass(eq=False, repr=False, kw_only=True)
class FineTune(Updater):
    """Minimise cross-entropy on retained rows; an epoch is a pass over them. Forgotten rows are not used.

    A large first `lr` forgets more (Golatkar et al., arXiv 1911.04933). Arguments as in Updater.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows", "corrections"),
        ("inputs", "retained rows"),
        "weights",
        "passes over retained rows",
        "arXiv 1911.04933",
    )
    factors: ClassVar[Factors] = Factors(sgd=2, adamw=2.0)

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch over retained rows."""
        return retained_phases(run, self.epochs)


def retained_phases(run: Run, epochs: int) -> list[Phase]:
    """Return the phases of cross-entropy on retained rows."""

    def loss(rows: Index) -> Terms:
        return {"retain": cross_entropy(run.logits(rows), run.y(rows))}

    return [Phase(epoch, "retained", single(run.retained(epoch)), loss) for epoch in range(epochs)]
