"""NegGrad+: descend on retained rows and ascend on forgotten ones in one step."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import cross_entropy

from expunge.finetune.loop import Index, Phase, Run, Terms, Updater


@dataclass(eq=False, repr=False, kw_only=True)
class NegGradPlus(Updater):
    """alpha CE(retained) - (1 - alpha) CE(forgotten), each a mean over its batch; Kurmanji et al., arXiv 2302.09880.

    An epoch is a pass over the retained rows, a batch of forgotten ones beside each. Nothing bounds the second term:
    with a small `alpha` the loss runs off, and the result is far from a retrained model before it is worthless.
    Batch norm: forgotten batches by running statistics. Other arguments as in Updater.
    """

    alpha: float = 0.98
    retain_share: float = 0.5

    def phases(self, run: Run) -> list[Phase]:
        def loss(retained: Index, forgotten: Index) -> Terms:
            keep = cross_entropy(run.logits(retained), run.y(retained))
            lose = cross_entropy(run.logits(forgotten, frozen_norm=True), run.y(forgotten))
            return {"retain": self.alpha * keep, "forget": -(1 - self.alpha) * lose}

        return [Phase(epoch, "retained and forgotten", run.pairs(epoch), loss) for epoch in range(self.epochs)]
