"""Instance-wise unlearning (L2UL): ascent on forgotten rows, regularised by adversarial copies of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from expunge.core.facts import Facts
from expunge.finetune.blinded import penalty
from expunge.finetune.kinds import need_pixels
from expunge.finetune.loop import RELABEL, Index, Phase, Run, Terms, Updater
from expunge.finetune.loss_free import output_sensitivity
from expunge.finetune.steps import Factors
from expunge.finetune.unseen import stop_at_unseen
from expunge.models.classifier import Classifier
from expunge.models.preprocess import Preprocess
from expunge.system.errors import DataError


@dataclass(eq=False, repr=False, kw_only=True)
class InstanceWise(Updater):
    """Ascent on forgotten rows and descent on adversarial copies of them; Cha et al., arXiv 2301.11578.

    The loss is
    `-CE(forgotten) / (1 + copies) + CE(adversarial) copies / (1 + copies) + lam / 2 sum (1 - O) (w - w0)^2`.

    An adversarial copy is a forgotten image after a targeted attack on the original towards a randomly drawn retained
    class, with that class as its label. The copies replace the retained rows, which are not used. O is the sensitivity
    of outputs on forgotten rows (as in LossFreeSsd), scaled to [0, 1] per tensor, so that weights that do not affect
    forgotten rows are penalised most.

    eps        L2 radius of the attack, in pixels of [0, 1]; published 4, for larger images
    step       of each of the `iterations`; published .1 and 100
    copies     per image; published 20
    attacked   at most this many forgotten rows are copied, drawn with `seed`; None copies all, all held in memory
    lam        published 1, which keeps a network that fits its rows from changing (measured on digits)
    cap        nats; a forgotten row whose loss has reached it no longer contributes. None is as published

    Training stops after the epoch in which no forgotten row is classified correctly, as published, or with
    `unseen_rows` once the accuracy is no higher than on those. A retrained model does not have accuracy 0 on rows of
    retained classes, so the published rule is a baseline for requests to remove the label. An epoch is a pass over the
    forgotten rows; `retain_share` has no effect. Batch norm: running statistics. Images only. Other arguments as in
    Updater.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("images",), "weights", "passes over forgotten rows", "arXiv 2301.11578"
    )
    eps: float = 1.0
    step: float = 0.1
    iterations: int = 15
    copies: int = 4
    attacked: int | None = 512
    lam: float = 0.05
    cap: float | None = 6.0
    epochs: int = 10
    factors: ClassVar[Factors] = Factors(sgd=0.3)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps <= 0 or self.step <= 0 or self.lam < 0:
            raise ValueError(
                f"eps and step must be above 0 and lam must not be negative, got {self.eps}, {self.step} and {self.lam}"
            )
        if min(self.iterations, self.copies, 1 if self.attacked is None else self.attacked) < 1:
            raise ValueError(
                f"iterations, copies and attacked must be at least 1, got {self.iterations}, {self.copies} and "
                f"{self.attacked}"
            )

    def _descend(self, run: Run) -> list[dict[str, float]]:
        as_unseen = stop_at_unseen(run)
        return run.train(self.phases(run), stop=lambda: nothing_read(run) or (as_unseen is not None and as_unseen()))

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch: forgotten rows, each batch with its adversarial copies."""
        x, y = self._copies(run)
        importance = output_sensitivity(run.original, run.inputs, run.forget)
        strength = {name: (self.lam / 2 * (1 - scaled(o))).float() for name, o in importance.items()}
        start = dict(run.original.named_parameters())
        share = self.copies / (1 + self.copies)

        def loss(rows: Index, copies: Index) -> Terms:
            losses = cross_entropy(run.logits(rows, frozen_norm=True), run.y(rows), reduction="none")
            lose = losses.mean() if self.cap is None else losses.clamp(max=self.cap).mean()
            at = torch.from_numpy(copies).to(x.device)
            keep = cross_entropy(run.logits_of(x[at], frozen_norm=True), y[at])
            stay = penalty(dict(run.student.named_parameters()), start, strength)
            return {"forget": -(1 - share) * lose, "copies": share * keep, "stay": stay}

        def batches(epoch: int) -> list[tuple[Index, Index]]:
            forgotten = run.forgotten(epoch)
            others = run.split(run.rng(RELABEL, epoch + 1).permutation(len(x)))
            return list(zip(forgotten, islice(cycle(others), len(forgotten)), strict=True))

        return [Phase(epoch, "forgotten", batches(epoch), loss) for epoch in range(self.epochs)]

    def _copies(self, run: Run) -> tuple[Tensor, Tensor]:
        """Return the adversarial copies, as inputs of the network, and their labels."""
        preprocess = need_pixels(run)
        rng = run.rng(RELABEL)
        rows = np.repeat(rng.permutation(run.forget)[: self.attacked], self.copies)
        wanted = other_labels(run, rows, rng)
        parts = []
        for part in np.array_split(np.arange(len(rows)), max(1, len(rows) // self.batch_size)):
            x = preprocess(run.inputs[rows[part]]).to(run.device)
            target = torch.from_numpy(wanted[part]).to(run.device)
            parts.append(attack(run.original, x, target, preprocess, self.eps, self.step, self.iterations))
        return torch.cat(parts), torch.from_numpy(wanted).to(run.device)


def other_labels(run: Run, rows: Index, rng: np.random.Generator) -> Index:
    """Return for each row a randomly drawn retained class other than its own. Raises DataError where there is none."""
    found = np.empty_like(rows)
    for own in np.unique(run.labels[rows]):
        others = np.setdiff1d(run.retained_classes, [own])
        if not len(others):
            raise DataError(f"InstanceWise needs retained rows of a class other than {own}")
        mine = run.labels[rows] == own
        found[mine] = rng.choice(others, int(mine.sum()))
    return found


def attack(
    model: Classifier, x: Tensor, target: Tensor, preprocess: Preprocess, eps: float, step: float, iterations: int
) -> Tensor:
    """Return `x (b, c, h, w)`, inputs of the network, after targeted L2 descent to `target (b,)` within radius `eps`.

    `eps` and `step` are in pixels of [0, 1], before `preprocess` normalises them. Pixels are clamped to [0, 1]; since
    `x` lies in that range, clamping does not leave the ball.
    """
    scale, centre = (x.new_tensor(v).view(1, -1, 1, 1) for v in (preprocess.std, preprocess.mean))
    start = x * scale + centre
    pixels = start.clone()
    for _ in range(iterations):
        at = ((pixels - centre) / scale).requires_grad_()
        [slope] = torch.autograd.grad(cross_entropy(model(at).float(), target, reduction="sum"), [at])
        slope = slope / scale  # the gradient with respect to pixels
        pixels = pixels - step * slope / lengths(slope).clamp_min(1e-12)
        away = pixels - start
        pixels = (start + away * (eps / lengths(away).clamp_min(1e-12)).clamp_max(1.0)).clamp(0.0, 1.0)
    return (pixels - centre) / scale


def lengths(x: Tensor) -> Tensor:
    """Return the L2 norm of each image, `(b, 1, 1, 1)`."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1).view(-1, 1, 1, 1)
    return norms


def scaled(values: Tensor) -> Tensor:
    """Return `values` scaled linearly onto [0, 1]; zeros where all are equal."""
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else torch.zeros_like(values)


@torch.no_grad()
def nothing_read(run: Run) -> bool:
    """Whether the student classifies none of the forgotten rows correctly."""
    training = run.student.training
    student = run.student.eval()
    hits = [bool((run.ask(student, part).argmax(1) == run.y(part)).any()) for part in run.split(run.forget)]
    student.train(training)
    return not any(hits)
