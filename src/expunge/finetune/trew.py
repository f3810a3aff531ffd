"""TREW: training of forgotten rows towards the tilted target, and of retained rows on their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import cross_entropy

from expunge.core.facts import Facts
from expunge.core.tilted import similarities, tilted_target
from expunge.finetune.kinds import has_retained_rows, need_whole_classes
from expunge.finetune.loop import Index, Phase, Run, Terms, Updater, kl


@dataclass(eq=False, repr=False, kw_only=True)
class Trew(Updater):
    """Minimise KL(t || student) on forgotten + CE on retained rows; Ebrahimpour-Boroojeny et al., arXiv 2506.20893.

    t is `core.tilted.tilted_target`. An epoch is a pass over the longer side, with a batch of each kind in every step.

    beta   strength of the tilt, 10 as published; 0 gives the target of DELETE; `methods.tilt_strength` fits it
    tau    temperature of the similarity of classes; not stated in the paper
    rank   number of principal components of the head's rows in which classes are compared; None takes all

    The paper does not state the weights of the two terms, so both are 1. Whole classes only. Batch norm: forgotten
    batches by running statistics. Other arguments as in Updater.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes",), ("inputs", "retained rows"), "weights", "passes over retained rows", "arXiv 2506.20893"
    )
    beta: float = 10.0
    tau: float = 1.0
    rank: int | None = None
    retain_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 0 or self.tau <= 0:
            raise ValueError(f"beta must not be negative and tau must be above 0, got {self.beta} and {self.tau}")

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch of retained and forgotten batches. Raises DataError unless classes are whole."""
        need_whole_classes(run, "its rows would be taught a wrong answer")
        keep = has_retained_rows(run)
        s = similarities(run.original.head.weight, keep, self.tau, self.rank)

        def loss(retained: Index, forgotten: Index) -> Terms:
            target = tilted_target(run.ask(run.original, forgotten), run.y(forgotten), keep, s, self.beta)
            return {
                "forget": kl(target, run.logits(forgotten, frozen_norm=True)),
                "retain": cross_entropy(run.logits(retained), run.y(retained)),
            }

        return [Phase(epoch, "retained and forgotten", run.pairs(epoch), loss) for epoch in range(self.epochs)]
