"""Sealing: distil `f(backbone(x))` into the backbone, so that the deployed model has no separate map."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.core.facts import Facts
from expunge.core.maps import FeatureMap
from expunge.finetune.loop import Index, Phase, Run, Terms, Updater, single
from expunge.finetune.steps import Factors


@dataclass(eq=False, repr=False, kw_only=True)
class Seal(Updater):
    """Distil a map into the backbone, with the head unchanged. [derived]

    It minimises, summed over retained and forgotten inputs,

        E ||z_new - f(z)||^2 / tr Cov(z) + logit_weight E KL(head(f(z)) || head(z_new)),   z_new = backbone(x)

    z is the original's feature of x and f is `map`. The divisor of the first term is the total variance of z over 16
    batches of shuffled rows, so that the term is a share of variance for every dimension and scale of the features; a
    constant vector at the mean gives about 1. The second term, in nats, is needed because a small distance does not
    imply equal outputs: where the map leaves forgotten rows near a tie between classes, a few per cent of the variance
    can restore the old class.

    Afterwards the map is not needed: z of `classifier_` approximates z' = f(z), as far as the backbone can express it
    (features after a ReLU cannot become negative). Neither term guarantees erasure. The remaining distance may still be
    decodable, so the sealed z should be probed.

    map      the map to seal in; the classifier's head must be the one that takes its output
    inputs   "both": an epoch is a pass over retained and forgotten rows shuffled together, and the means over both
             kinds have equal weight; "forget": a pass over forgotten rows only, from which the variance is computed
             too, so that retained rows are protected only by the initial weights
    logit_weight   0 distils features only

    Batch norm: with "both" each batch's statistics, with "forget" the running ones, which need far smaller learning
    rates. Other arguments as in Updater.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("inputs", "retained rows"), "weights", "passes over retained rows", "derived"
    )
    map: FeatureMap = field(kw_only=False)
    inputs: Literal["both", "forget"] = "both"
    logit_weight: float = 0.1
    factors: ClassVar[Factors] = Factors(sgd=1)
    retain_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.logit_weight < 0:
            raise ValueError(f"logit_weight must not be negative, got {self.logit_weight}")
        if self.inputs not in ("both", "forget"):
            raise ValueError(f"inputs must be both or forget, got {self.inputs!r}")

    def _descend(self, run: Run) -> list[dict[str, float]]:
        backbone = {f"backbone.{name}": p for name, p in run.student.backbone.named_parameters()}
        run.student.head.requires_grad_(False)
        return run.train(self.phases(run), backbone)

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch over the rows of `inputs`, with their distance to the output of the map."""
        scale = self._variance(run, run.mixed(0) if self.inputs == "both" else run.forgotten(0))
        forgotten = np.zeros(len(run.labels), dtype=bool)
        forgotten[run.forget] = True

        def miss(rows: Index, frozen_norm: bool) -> tuple[Tensor, Tensor]:
            """Return the feature distance and the weighted KL of each row, `(b,)` and `(b,)`."""
            target = self.map(self._original_features(run, rows)).float()
            z, head = run.features(rows, frozen_norm), run.original.head
            kl = F.kl_div(F.log_softmax(head(z), 1), F.softmax(head(target), 1), reduction="none").sum(1)
            return (z - target).square().sum(1) / scale, self.logit_weight * kl

        def forget(rows: Index) -> Terms:
            far, kl = miss(rows, frozen_norm=True)
            return {"forget": far.mean(), "forget_kl": kl.mean()}

        def both(rows: Index) -> Terms:
            far, kl = miss(rows, frozen_norm=False)
            chosen = torch.from_numpy(forgotten[rows]).to(run.device)
            # With these weights the sums over all batches of a pass become means over each kind of row.
            keep, lose = (n / (count * len(rows)) for count in (n - len(run.forget), len(run.forget)))
            return {
                "retain": far[~chosen].sum() * keep,
                "forget": far[chosen].sum() * lose,
                "retain_kl": kl[~chosen].sum() * keep,
                "forget_kl": kl[chosen].sum() * lose,
            }

        if self.inputs == "forget":
            return [Phase(e, "forgotten", single(run.forgotten(e)), forget) for e in range(self.epochs)]
        passes = [run.mixed(e) for e in range(self.epochs)]
        n = sum(map(len, passes[0]))
        return [Phase(e, "all rows", single(batches), both) for e, batches in enumerate(passes)]

    @torch.no_grad()
    def _original_features(self, run: Run, rows: Index) -> Tensor:
        with run.autocast():
            z = run.original.features(run.inputs[rows])
        return z.float()

    def _variance(self, run: Run, batches: list[Index]) -> float:
        """Return tr Cov of the original's features over at most 16 batches."""
        z = torch.cat([self._original_features(run, rows) for rows in batches[:16]]).double()
        return float(z.var(0, correction=0).sum())
