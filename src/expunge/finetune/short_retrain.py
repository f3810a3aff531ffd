"""Short retraining of the whole network, the baseline that a method must beat at equal cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from expunge.core.facts import Facts
from expunge.finetune.budget import LARGEST_BATCH, batch_size_of, passes_over
from expunge.finetune.initial_weights import anew
from expunge.finetune.loop import Index, Phase, Run, Terms, Updater, kl, single
from expunge.finetune.relearn import TARGETS, teacher_probabilities
from expunge.finetune.steps import Factors, recorded
from expunge.models.cut_costs import share_above
from expunge.models.tokens import Tokens


@dataclass(eq=False, repr=False, kw_only=True)
class ShortRetrain(Updater):
    """Train a network with initial weights on retained rows for a given number of passes; forgotten rows are not used.

    epochs    passes over the retained rows; may be a fraction. None takes those of `relearn`, see `finetune/budget.py`
    cut       None: passes of the whole network. With a module's name, `epochs` counts passes above that cut, as
              `relearn` makes them, and the whole network gets the number of passes that needs as many multiplications
              and additions [derived: epochs times the share of a forward pass that is above the cut; the backward pass
              costs twice the forward pass in both]. Costs are counted, not timed, so the result does not depend on the
              machine's load
    targets   "original": the original's probabilities, renormalised over classes with retained rows; they may contain a
              trace of forgotten rows, so this is a measured baseline and not exact. "labels": the labels alone

    Layers start from public weights where these are recorded, else from a draw with `seed`; the head is always drawn.
    `batch_size` None takes the recipe's. The cost of the original's outputs is not counted, because other methods have
    stored features. Other arguments as in Updater. Also fitted: `passes_`, the number of passes over the whole network.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows", "corrections"),
        ("inputs", "retained rows"),
        "weights",
        "passes over retained rows",
        "retraining, cut short; equal cost: derived",
    )
    epochs: float | None = None  # type: ignore[assignment]
    cut: str | None = None
    targets: str = "original"
    factors: ClassVar[Factors] = Factors(sgd=2, adamw=2.0)
    batch_size: int | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.targets not in TARGETS:
            raise ValueError(f"targets must be one of {', '.join(TARGETS)}, got {self.targets!r}")
        if (self.epochs is not None and self.epochs <= 0) or (self.batch_size is not None and self.batch_size < 2):
            raise ValueError(
                f"epochs must be above 0 and batch_size at least 2, got {self.epochs} and {self.batch_size}"
            )
        self._check_descent()

    def _descend(self, run: Run) -> list[dict[str, float]]:
        card = run.original.card
        run.batch_size = self.batch_size or int(recorded(card).get("batch_size", LARGEST_BATCH))
        epochs = self.epochs or passes_over(card, len(run.retain), batch_size_of(card))
        self.passes_ = epochs * (1.0 if self.cut is None else share_above(run.original, self.cut))
        student = anew(run.original, self.seed).requires_grad_(True)
        if not isinstance(student.preprocess, Tokens):
            student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        run.student, run.norms = student, [m for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        return run.train(self.phases(run))

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch over retained rows; the last is cut off where the passes are a fraction."""
        classes = torch.from_numpy(run.retained_classes)

        def loss(rows: Index) -> Terms:
            logits = run.logits(rows)
            if self.targets == "labels":
                return {"retain": torch.nn.functional.cross_entropy(logits, run.y(rows))}
            target = teacher_probabilities(run.ask(run.original, rows), classes).to(run.device)
            return {"retain": kl(target, logits)}

        phases = []
        for epoch in range(math.ceil(self.passes_)):
            batches = run.retained(epoch)
            share = min(1.0, self.passes_ - epoch)
            phases.append(Phase(epoch, "retained", single(batches[: max(1, round(share * len(batches)))]), loss))
        return phases
