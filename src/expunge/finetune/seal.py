"""Sealing: distil `f(backbone(x))` into the backbone, so that no separable map is shipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expunge.core.maps import FeatureMap
from expunge.finetune.loop import Index, Phase, Run, Terms, Updater, single


@dataclass(eq=False, repr=False)
class Seal(Updater):
    """min E ||backbone(x) - f(backbone_0(x))||^2 / tr Cov(z_0), the head unchanged; f is `map`. [derived]

    The divisor is the total variance of the original features over the training rows' first batches, so the loss is a
    share of variance, whatever the features' dimension and scale: 1 is what a constant feature vector at the mean
    scores. The map can be thrown away afterwards: z of `classifier_` behaves like z' = f(z), as far as the backbone
    can express it (features behind a ReLU cannot become negative, whatever the map asks for).

    map      the map to seal in; the classifier's head must be the one that reads its output
    inputs   "both": an epoch is a pass over retained rows, a batch of forgotten ones beside each, both terms of equal
             weight; "forget": a pass over forgotten rows only, so that retained rows are protected only by the start

    Batch norm: running statistics throughout, as the target was computed. Other arguments as in Updater.
    """

    map: FeatureMap
    inputs: Literal["both", "forget"] = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inputs not in ("both", "forget"):
            raise ValueError(f"inputs {self.inputs!r}: one of both, forget")

    def _descend(self, run: Run) -> list[dict[str, float]]:
        backbone = {f"backbone.{name}": p for name, p in run.student.backbone.named_parameters()}
        run.student.head.requires_grad_(False)
        return run.train(self.phases(run), backbone)

    def phases(self, run: Run) -> list[Phase]:
        scale = self._variance(run)

        def miss(rows: Index) -> Tensor:
            target = self.map(self._original_features(run, rows)).float()
            return (run.features(rows, frozen_norm=True) - target).square().sum(1).mean() / scale

        def both(retained: Index, forgotten: Index) -> Terms:
            return {"retain": miss(retained), "forget": miss(forgotten)}

        def forget(rows: Index) -> Terms:
            return {"forget": miss(rows)}

        if self.inputs == "both":
            return [Phase(e, "retained and forgotten", run.pairs(e), both) for e in range(self.epochs)]
        return [Phase(e, "forgotten", single(run.forgotten(e)), forget) for e in range(self.epochs)]

    @torch.no_grad()
    def _original_features(self, run: Run, rows: Index) -> Tensor:
        with run.autocast():
            z = run.original.features(run.images[rows])
        return z.float()

    def _variance(self, run: Run) -> float:
        """tr Cov of the original's features over 16 batches of shuffled rows."""
        z = torch.cat([self._original_features(run, rows) for rows in run.mixed(0)[:16]]).double()
        return float(z.var(0, correction=0).sum())
