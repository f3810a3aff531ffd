"""UNSIR: noise that the original takes least for the class impairs the network, and retained rows repair it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from expunge.core.facts import Facts
from expunge.finetune.kinds import need_pixels, need_whole_classes
from expunge.finetune.loop import RELABEL, Index, Phase, Run, Terms, Updater, single
from expunge.finetune.steps import Factors


@dataclass(eq=False, repr=False, kw_only=True)
class Unsir(Updater):
    """Train on error-maximising noise under the forgotten label, then on retained rows; Tarun et al., arXiv 2111.08947.

    For each forgotten class, inputs of the network start at draws from N(0, 1). Adam minimises
    `-CE(class) + lam ||x||^2` over them under the original, whose weights do not change. Each of `impair_epochs`
    passes over the retained rows then minimises CE on them and on this noise, shuffled together, with the forgotten
    class as label of the noise. Each of `epochs` passes after them minimises CE on retained rows alone. Forgotten
    rows are never read.

    lam            of the squared L2 norm, as in the published code; the paper's formula has the norm itself
    noises         inputs per forgotten class; published 256
    noise_steps    of Adam, at rate `noise_lr`; published 40 and .1
    impair_epochs  published 1, as `epochs`
    noise_share    of the rows of an impairing pass that are noise; published .36 for a class of CIFAR-10

    The paper repairs at half the rate at which it impairs. Here the rate falls along the loop's cosine, over both.
    The retained rows are drawn anew for each pass; the paper uses one draw. Batch norm: every batch by its own
    statistics, noise included, as in the published code; the repairing passes restore the running statistics. Whole
    classes only. Images only. Other arguments as in Updater.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes",), ("images", "retained rows"), "weights", "passes over retained rows", "arXiv 2111.08947"
    )
    lam: float = 0.1
    noises: int = 256
    noise_steps: int = 40
    noise_lr: float = 0.1
    impair_epochs: int = 1
    noise_share: float = 0.36
    epochs: int = 1
    factors: ClassVar[Factors] = Factors(sgd=0.5)
    retain_share: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lam < 0 or self.noise_lr <= 0 or not 0 < self.noise_share < 1:
            raise ValueError(
                f"lam must not be negative, noise_lr above 0 and noise_share in (0, 1), got {self.lam}, "
                f"{self.noise_lr} and {self.noise_share}"
            )
        if min(self.noises, self.noise_steps, self.impair_epochs) < 1:
            raise ValueError(
                f"noises, noise_steps and impair_epochs must be at least 1, got {self.noises}, {self.noise_steps} and "
                f"{self.impair_epochs}"
            )

    def phases(self, run: Run) -> list[Phase]:
        """Return the impairing epochs, on retained rows and noise, and then the repairing ones, on retained rows."""
        classes = need_whole_classes(run, "the noise would impair what the network reads in these, too")
        preprocess = need_pixels(run)
        noise, noise_labels = self._noise(run, classes)

        def impair(rows: Index, at: Index) -> Terms:
            picked = torch.from_numpy(at).to(run.device)
            x = torch.cat([preprocess(run.inputs[rows]).to(run.device), noise[picked]])
            y = torch.cat([run.y(rows), noise_labels[picked]])
            losses = cross_entropy(run.logits_of(x), y, reduction="none") / len(y)
            return {"retain": losses[: len(rows)].sum(), "noise": losses[len(rows) :].sum()}

        def repair(rows: Index) -> Terms:
            return {"retain": cross_entropy(run.logits(rows), run.y(rows))}

        first = range(self.impair_epochs)
        then = range(self.impair_epochs, self.impair_epochs + self.epochs)
        return [
            *(Phase(epoch, "impair", self._mixed(run, epoch, len(noise)), impair) for epoch in first),
            *(Phase(epoch, "repair", single(run.retained(epoch)), repair) for epoch in then),
        ]

    def _noise(self, run: Run, classes: Index) -> tuple[Tensor, Tensor]:
        """Return the noise of all classes, as inputs of the network, and its labels."""
        shape = tuple(need_pixels(run)(run.inputs[run.retain[:1]]).shape[1:])
        rng = run.rng(RELABEL)
        labels = torch.from_numpy(np.repeat(classes, self.noises)).to(run.device)
        start = torch.from_numpy(rng.standard_normal((len(labels), *shape), dtype=np.float32)).to(run.device)
        parts = [
            error_maximising(run.original, x, y, self.lam, self.noise_lr, self.noise_steps)
            for x, y in zip(torch.split(start, self.batch_size), torch.split(labels, self.batch_size), strict=True)
        ]
        return torch.cat(parts), labels

    def _mixed(self, run: Run, epoch: int, noises: int) -> list[tuple[Index, Index]]:
        """Return batches of retained rows and of positions in the noise, which is repeated up to its share."""
        retained = np.concatenate(run.retained(epoch))
        wanted = max(1, round(len(retained) * self.noise_share / (1 - self.noise_share)))
        at = np.resize(run.rng(RELABEL, epoch + 1).permutation(noises), wanted)
        n = math.ceil((len(retained) + wanted) / self.batch_size)
        return list(zip(np.array_split(retained, n), np.array_split(at, n), strict=True))


def error_maximising(model: nn.Module, x: Tensor, labels: Tensor, lam: float, lr: float, steps: int) -> Tensor:
    """Return `x (b, ...)` after `steps` of Adam that minimise `noise_loss` under `model`, which is not changed."""
    x = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=lr)
    for _ in range(steps):
        [x.grad] = torch.autograd.grad(noise_loss(model(x).float(), x, labels, lam), [x])
        optimizer.step()
    return x.detach()


def noise_loss(logits: Tensor, x: Tensor, labels: Tensor, lam: float) -> Tensor:
    """Return `lam ||x||^2 - CE(logits, labels)`, summed over inputs, so that none depends on the number of others."""
    return lam * x.square().sum() - cross_entropy(logits, labels, reduction="sum")
