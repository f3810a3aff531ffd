"""NatMU: training on blends of forgotten images with retained ones of similar classes, under the retained labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from expunge.core.facts import Facts
from expunge.finetune.kinds import need_pixels
from expunge.finetune.loop import RELABEL, Index, Phase, Run, Terms, Updater
from expunge.finetune.steps import Factors
from expunge.system.errors import DataError

HYBRIDS = 4  # per forgotten row, one per mask


@dataclass(eq=False, repr=False, kw_only=True)
class NatMU(Updater):
    """Minimise CE on retained rows and on hybrids of forgotten and retained ones; He et al., arXiv 2405.15495.

    Each forgotten row gives four hybrids `m x_f + (1 - m) x_r`. For the k-th, x_r is a retained row of the class with
    the k-th largest probability under the original, among the retained classes other than the row's own, and m is the
    k-th of `masks`. The label is that of x_r.

    delta   added to the masks; larger values keep more of the forgotten image, 1 all of it and -1 none
    lr      the paper uses AdamW; here it is the rate of the loop's optimizer

    An epoch is a pass over the retained rows and all hybrids, shuffled together. x_r is drawn with `seed`, with
    replacement. Images only. Raises DataError when fewer than four classes besides a row's own are retained. Other
    arguments as in Updater.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("images", "retained rows"), "weights", "passes over retained rows", "arXiv 2405.15495"
    )
    delta: float = -0.1
    epochs: int = 2
    factors: ClassVar[Factors] = Factors(sgd=0.2)
    retain_share: float = 0.3

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch: each batch joins retained rows and hybrids."""
        images, labels = hybrids(run, self.delta)

        def loss(retained: Index, mixed: Index) -> Terms:
            x = np.concatenate([run.inputs[retained], images[mixed]])
            y = torch.from_numpy(np.concatenate([run.labels[retained], labels[mixed]])).to(run.device)
            return {"loss": cross_entropy(run.logits_of(x), y)}

        def batches(epoch: int) -> list[tuple[Index, Index]]:
            retained = np.concatenate(run.retained(epoch))
            mixed = run.rng(RELABEL, epoch + 1).permutation(len(images))
            n = math.ceil((len(retained) + len(mixed)) / self.batch_size)
            return list(zip(np.array_split(retained, n), np.array_split(mixed, n), strict=True))

        return [Phase(epoch, "retained and hybrids", batches(epoch), loss) for epoch in range(self.epochs)]


def hybrids(run: Run, delta: float) -> tuple[NDArray[np.uint8], Index]:
    """Return the images `(4 n_f, h, w, c)` uint8 and their labels `(4 n_f,)`, in the order of `run.forget` per mask."""
    need_pixels(run)
    guesses = guessed(run)
    partners = np.empty_like(guesses)
    rng = run.rng(RELABEL)
    for c in np.unique(guesses):
        wanted = guesses == c
        partners[wanted] = rng.choice(run.retain[run.labels[run.retain] == c], int(wanted.sum()))
    own = run.inputs[run.forget]
    parts = []
    for k, mask in enumerate(masks(own.shape[1], own.shape[2], delta)):
        m = mask.reshape(mask.shape + (1,) * (own.ndim - 3))
        blend = m * own.astype(np.float64) + (1 - m) * run.inputs[partners[:, k]].astype(np.float64)
        parts.append(np.rint(blend).astype(np.uint8))
    return np.concatenate(parts), guesses.T.reshape(-1)


def guessed(run: Run) -> Index:
    """Return for each forgotten row the four most probable retained classes but its own, `(n_f, 4)`."""
    keep = torch.zeros(run.original.card.num_classes, dtype=torch.bool)
    keep[torch.from_numpy(run.retained_classes)] = True
    parts = []
    for rows in run.split(run.forget):
        allowed = keep.repeat(len(rows), 1)
        allowed[torch.arange(len(rows)), torch.from_numpy(run.labels[rows])] = False
        if int(allowed.sum(1).min()) < HYBRIDS:
            raise DataError(f"NatMU needs retained rows of {HYBRIDS} classes other than that of each forgotten row")
        logits = run.ask(run.original, rows).cpu().masked_fill(~allowed, -torch.inf)
        parts.append(logits.topk(HYBRIDS, dim=1).indices.numpy())
    return np.concatenate(parts)


def masks(height: int, width: int, delta: float) -> list[NDArray[Any]]:
    """Return four `(h, w)` masks, plus `delta`, clipped to [0, 1].

    The first two rise linearly to the middle row and to the middle column, and the other two are their complements.
    """
    rows = np.minimum(np.arange(height), np.arange(height)[::-1]) / (height / 2)
    columns = np.minimum(np.arange(width), np.arange(width)[::-1]) / (width / 2)
    down = np.repeat(rows[:, None], width, axis=1)
    across = np.repeat(columns[None], height, axis=0)
    ramps = [down, across, rows.max() - down, columns.max() - across]
    return [np.clip(ramp + delta, 0.0, 1.0) for ramp in ramps]
