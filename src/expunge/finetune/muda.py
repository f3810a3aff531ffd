"""MUDA: forgotten features are aligned with the subspace of retained ones, in turns with training on retained rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from expunge.core.facts import Facts
from expunge.finetune.kinds import need_whole_classes
from expunge.finetune.loop import RELABEL, Index, Phase, Run, Terms, Updater, kl, single
from expunge.finetune.projected import outside


@dataclass(eq=False, repr=False, kw_only=True)
class Muda(Updater):
    """Minimise `1 - DA + KL(sg p(P z) || p(z))` on forgotten rows, then CE on retained ones, in turns.

    After Seo, Kim and Han, arXiv 2407.17710, whose formulas were not found: a reconstruction. P is the projection onto
    the leading eigenvectors of E[z z'] of retained rows under the student, computed at the start of each epoch, and
    `DA = sum ||P z||^2 / sum ||z||^2` over the batch. The target of the second term is the student's own output after
    the projection (`sg` stops its gradient).

    energy        share of the second moment that P keeps
    moment_rows   number of retained rows from which it is computed, drawn with `seed`

    An epoch is a pass over the forgotten rows, with batch norm's running statistics, and one over the retained rows.
    Whole classes only, because rows of retained classes already lie in the retained subspace. A projection would reach
    DA = 1, which no retrained model has, so the metric measures the distance to a retrained model's DA
    (`evaluation.alignment`). Other arguments as in Updater. Also fitted: `ranks_`, the rank of P in each epoch.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes",),
        ("inputs", "retained rows"),
        "weights",
        "passes over retained rows",
        "arXiv 2407.17710, reconstruction",
    )
    energy: float = 0.95
    moment_rows: int = 2000
    epochs: int = 2
    retain_share: float = 0.3
    ranks_: list[int] = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.energy <= 1 or self.moment_rows < 1:
            raise ValueError(
                f"energy must be in (0, 1] and moment_rows at least 1, got {self.energy} and {self.moment_rows}"
            )

    def phases(self, run: Run) -> list[Phase]:
        """Return two phases per epoch: forgotten, then retained rows. Raises DataError unless classes are whole."""
        need_whole_classes(run, "the features of its rows lie where those of the retained rows lie")
        self.ranks_ = []
        projections: dict[int, Tensor] = {}

        def away(epoch: int, rows: Index) -> Terms:
            if epoch not in projections:
                projections[epoch] = self._projection(run)
            p = projections[epoch]
            z = run.features(rows, frozen_norm=True)
            with torch.no_grad():
                target = run.student.head(z @ p).softmax(1)
            return {"unaligned": 1 - aligned(z, p), "forget": kl(target, run.student.head(z))}

        def back(rows: Index) -> Terms:
            return {"retain": cross_entropy(run.logits(rows), run.y(rows))}

        def of(epoch: int) -> list[Phase]:
            forget = Phase(epoch, "forgotten", single(run.forgotten(epoch)), lambda rows: away(epoch, rows))
            return [forget, Phase(epoch, "retained", single(run.retained(epoch)), back)]

        return [phase for epoch in range(self.epochs) for phase in of(epoch)]

    @torch.no_grad()
    def _projection(self, run: Run) -> Tensor:
        """Return P `(d, d)` float32 of the present student, in eval mode."""
        training = run.student.training
        student = run.student.eval()
        rows = run.rng(RELABEL).permutation(run.retain)[: self.moment_rows]
        z = torch.cat([student.features(run.inputs[part]).double() for part in run.split(rows)])
        student.train(training)
        p = torch.eye(z.shape[1], dtype=z.dtype, device=z.device) - outside((z.T @ z / len(z))[None], self.energy)[0]
        self.ranks_.append(round(float(p.trace())))
        return p.float()


def aligned(z: Tensor, projection: Tensor) -> Tensor:
    """Return DA, in [0, 1], of features `z (b, d)` for an orthogonal projection `(d, d)`."""
    return (z @ projection).square().sum() / z.square().sum()
