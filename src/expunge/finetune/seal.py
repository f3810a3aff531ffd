"""Sealing: distil `f(backbone(x))` into the backbone, so that no separable map is shipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from expunge.core.maps import FeatureMap
from expunge.finetune.loop import Index, Phase, Run, Terms, Updater, single


@dataclass(eq=False, repr=False)
class Seal(Updater):
    """min E_r ||backbone(x) - f(z)||^2 + E_f ||backbone(x) - f(z)||^2, over tr Cov(z), the head unchanged. [derived]

    z is the original's feature of x, f is `map`. The divisor is the total variance of z over 16 batches of shuffled
    rows, so each term is a share of variance whatever the features' dimension and scale: about 1 is what a constant
    vector at the mean scores. The map can be thrown away afterwards: z of `classifier_` behaves like z' = f(z), as far
    as the backbone can express it (features behind a ReLU cannot become negative, whatever the map asks for).
    A small distance is not erasure: what is left of it may still be decodable, so probe the sealed z.

    map      the map to seal in; the classifier's head must be the one that reads its output
    inputs   "both": an epoch is a pass over retained and forgotten rows shuffled together, the means over either kind
             weighing the same; "forget": over forgotten rows only, so that only the start protects retained ones

    Batch norm: "both" by each batch's statistics, "forget" by running ones, which bears far smaller rates only.
    Other arguments as in Updater.
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
        forgotten = np.zeros(len(run.labels), dtype=bool)
        forgotten[run.forget] = True

        def miss(rows: Index, frozen_norm: bool) -> Tensor:
            target = self.map(self._original_features(run, rows)).float()
            return (run.features(rows, frozen_norm) - target).square().sum(1) / scale

        def forget(rows: Index) -> Terms:
            return {"forget": miss(rows, frozen_norm=True).mean()}

        def both(rows: Index) -> Terms:
            far, chosen = miss(rows, frozen_norm=False), torch.from_numpy(forgotten[rows]).to(run.device)
            # Weights that turn the sums over all batches of a pass into means over either kind.
            keep, lose = (n / (count * len(rows)) for count in (n - len(run.forget), len(run.forget)))
            return {"retain": far[~chosen].sum() * keep, "forget": far[chosen].sum() * lose}

        if self.inputs == "forget":
            return [Phase(e, "forgotten", single(run.forgotten(e)), forget) for e in range(self.epochs)]
        passes = [run.mixed(e) for e in range(self.epochs)]
        n = sum(map(len, passes[0]))
        return [Phase(e, "all rows", single(batches), both) for e, batches in enumerate(passes)]

    @torch.no_grad()
    def _original_features(self, run: Run, rows: Index) -> Tensor:
        with run.autocast():
            z = run.original.features(run.images[rows])
        return z.float()

    def _variance(self, run: Run) -> float:
        """tr Cov of the original's features over 16 batches of shuffled rows."""
        z = torch.cat([self._original_features(run, rows) for rows in run.mixed(0)[:16]]).double()
        return float(z.var(0, correction=0).sum())
