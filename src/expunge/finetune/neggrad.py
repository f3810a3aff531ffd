"""NegGrad+: gradient descent on retained rows and ascent on forgotten ones in the same step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.nn.functional import cross_entropy

from expunge.core.facts import Facts
from expunge.finetune.loop import Index, Phase, Run, Terms, Updater
from expunge.finetune.steps import Factors


@dataclass(eq=False, repr=False, kw_only=True)
class NegGradPlus(Updater):
    """Minimise alpha CE(retained) - (1 - alpha) CE(forgotten), means over batches; Kurmanji et al., arXiv 2302.09880.

    An epoch is a pass over the retained rows, with a batch of forgotten rows for each batch.

    cap   nats; a forgotten row whose loss has reached it no longer contributes. With None, as published, the second
          term is unbounded, and once it diverges the accuracy on retained rows is lost within a few steps

    Batch norm: forgotten batches by running statistics. Other arguments as in Updater.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("inputs", "retained rows"), "weights", "passes over retained rows", "arXiv 2302.09880"
    )
    for_rows: ClassVar[Mapping[str, Any]] = {"cap": 0.5}
    alpha: float = 0.98
    cap: float | None = 6.0
    factors: ClassVar[Factors] = Factors(sgd=0.3, adamw=0.125)
    retain_share: float = 0.5

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch: a retained and a forgotten batch in each step."""

        def loss(retained: Index, forgotten: Index) -> Terms:
            keep = cross_entropy(run.logits(retained), run.y(retained))
            lose = cross_entropy(run.logits(forgotten, frozen_norm=True), run.y(forgotten), reduction="none")
            lose = lose.clamp(max=self.cap).mean() if self.cap is not None else lose.mean()
            return {"retain": self.alpha * keep, "forget": -(1 - self.alpha) * lose}

        return [Phase(epoch, "retained and forgotten", run.pairs(epoch), loss) for epoch in range(self.epochs)]
