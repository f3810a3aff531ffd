"""Retrain all layers above a cut from a fresh start, on stored activations of retained rows.

Goel et al. (arXiv 2201.06640) call the plain form EU-k: the layers above the cut are retrained from scratch without the
forgotten data, and the layers below do not change. With stored activations a request needs no pass through the lower
layers. The soft targets of `targets="original"` are ours, see `Relearn`. docs/relearn.md has the measurements.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from expunge.core.estimator import Estimator
from expunge.core.facts import Facts
from expunge.finetune.budget import batch_size_of, passes_over
from expunge.finetune.cut import Activations, batch_of, features_of
from expunge.finetune.initial_weights import fresh_above
from expunge.finetune.process_group import RANK_SEEDS, ProcessGroup, synchronised_batch_norm
from expunge.finetune.steps import OPTIMIZERS, Factors, Steps
from expunge.models.classifier import Classifier
from expunge.models.cut_split import CutSplit
from expunge.models.cuts import split_at_cut, uncut
from expunge.system.errors import CollapseError, DataError
from expunge.system.progress import progress

# Fits a `Relearn` to a classifier, activations, labels, rows and logits, as `Relearn.fit` does.
Relearning = Callable[
    ["Relearn", Classifier, Activations, NDArray[np.integer], NDArray[np.integer] | None, Tensor | None], "Relearn"
]
TARGETS = ("labels", "original")
STARTS = ("auto", "public", "fresh")
BATCH_OF_INFERENCE = 1000
FACTORS = Factors(sgd=2.0, adamw=2.0)
ROUNDING = 1e-6  # of a number of steps that was divided by the steps of a pass and is multiplied by them again
WARM_UP = 0.15  # share of the steps over which the learning rate rises


class Relearn(Estimator):
    """Retrain the layers above `cut` and the head from a fresh or public start; forgotten rows are not used.

    `cut`: the last module that is kept, by its name in the backbone. A deeper cut (nearer the input) costs more and
    keeps less information about forgotten rows.
    `epochs`: passes over the retained rows; may be a fraction. None takes the share `budget` of the passes that
    `finetune/budget.py` derives from the model's own recipe; only then is `budget` used.
    `batch_size`: None takes the recipe's, at most 128.
    `targets`: "labels" trains on the labels alone, so that forgotten rows influence the layers above the cut only
    through the layers below. "original" trains on the original's probabilities for the retained rows, renormalised
    over the classes with retained rows. It gives the better classifier in the same time, but the original saw the
    forgotten rows and its probabilities may contain a trace of them, so that unlearning above the cut must be measured
    and does not hold by design.
    `optimizer`: "sgd" (with `momentum`), "adamw", or "auto", the kind that trained the classifier.
    `lr`: the highest rate; None takes `factor` (None: 2, the recipe's own peak) times the mean rate of that training,
    see `steps.py`.
    `start`: see `fresh_above`.
    `precision`: "bf16" (autocast) or "fp32".

    Fitted: `classifier_`, in eval mode, whose tensors below the cut equal the original's bit for bit, and `history_`,
    with the pass, loss, accuracy (on the training batches) and seconds of each pass.
    The weights depend only on arguments, data, kind of processor, and number of threads and processes.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows", "corrections"),
        ("activations", "retained rows"),
        "weights",
        "passes over retained rows",
        "arXiv 2201.06640; soft targets: derived",
    )

    def __init__(
        self,
        cut: str = "stage1",
        epochs: float | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        targets: str = "original",
        precision: str = "bf16",
        seed: int = 0,
        optimizer: str = "auto",
        start: str = "auto",
        factor: float | None = None,
        budget: float = 1.0,
    ) -> None:
        if targets not in TARGETS:
            raise ValueError(f"targets must be one of {', '.join(TARGETS)}, got {targets!r}")
        if precision not in ("bf16", "fp32"):
            raise ValueError(f"precision must be bf16 or fp32, got {precision!r}")
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
        if start not in STARTS:
            raise ValueError(f"start must be one of {', '.join(STARTS)}, got {start!r}")
        if (epochs is not None and epochs <= 0) or (batch_size is not None and batch_size < 2):
            raise ValueError(f"epochs must be above 0 and batch_size at least 2, got {epochs} and {batch_size}")
        if budget <= 0:
            raise ValueError(f"budget must be above 0, got {budget}")
        self.cut = cut
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.targets = targets
        self.precision = precision
        self.seed = seed
        self.optimizer = optimizer
        self.start = start
        self.factor = factor
        self.budget = budget

    def fit(
        self,
        classifier: Classifier,
        activations: Activations,
        labels: NDArray[np.integer],
        rows: NDArray[np.integer] | None = None,
        logits: Tensor | None = None,
        begin: Classifier | None = None,
        group: ProcessGroup | None = None,
    ) -> Relearn:
        """Retrain above the cut of `classifier`, which must be in eval mode and is not changed.

        `activations` (n, h, w, c), or (n, t, c) for tokens, and `labels` (n,) are used at `rows` (None: all), which
        must be the retained rows. `logits` are the original's `(len(rows), k)` where they are known, for example from
        stored features; they are used only for targets="original", and computed from the activations if omitted.
        `group` is this process's place among processes that relearn together, each with a slice of every batch.
        Raises ConfigError for an unknown cut, DataError for unusable rows or labels, CollapseError for a loss that
        diverges.
        """
        chosen = torch.arange(len(labels)) if rows is None else torch.from_numpy(np.asarray(rows, np.int64))
        y = torch.from_numpy(np.asarray(labels, np.int64))[chosen]
        if len(activations) != len(labels) or len(y) < 2:
            raise DataError(
                f"relearning needs one label per activation and at least 2 retained rows, got {len(activations)} "
                f"activations, {len(labels)} labels and {len(y)} retained rows"
            )
        if y.min() < 0 or y.max() >= classifier.card.num_classes:
            raise DataError(
                f"labels must be in 0..{classifier.card.num_classes - 1}, the classes of the model, got "
                f"{y.min()}..{y.max()}"
            )
        traces = split_at_cut(classifier, self.cut).traces  # raises for an unknown cut or a classifier in train mode
        target = y
        if self.targets == "original":
            if logits is None:
                logits = logits_above(classifier, activations, self.cut, chosen)
            target = teacher_probabilities(logits, y)
        self.classifier_ = begin or fresh_above(classifier, self.cut, self.seed, self.start)
        self.history_ = self._learn(uncut(self.classifier_, self.cut, traces), activations, chosen, y, target, group)
        return self

    def _learn(
        self,
        split: CutSplit,
        activations: Activations,
        rows: Tensor,
        y: Tensor,
        target: Tensor,
        group: ProcessGroup | None,
    ) -> list[dict[str, float]]:
        classifier = split.classifier
        own = dict(split.core.named_parameters())
        parameters = [own[k] for k in split.lying_above.parameters] + list(classifier.head.parameters())
        # Weight decay on norms and biases only lowers the accuracy of so short a training.
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        steps_ = Steps.of(classifier.card, FACTORS, self.lr, self.factor, self.optimizer)
        lr, momentum = steps_.lr, self.momentum
        optimizer: torch.optim.Optimizer
        if steps_.optimizer == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=lr)
        else:
            optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
        size = min(self.batch_size or batch_size_of(classifier.card), len(rows))
        per_pass = len(rows) // size  # the incomplete batch is dropped, because batch norm needs equal batches
        passes = self.epochs or self.budget * passes_over(classifier.card, len(rows), size)
        steps = max(1, math.floor(passes * per_pass + ROUNDING))
        group = group or ProcessGroup()
        if size < group.world_size:
            raise DataError(f"relearn: batches of {size} rows cannot be shared by {group.world_size} processes")
        generator = torch.Generator().manual_seed(self.seed)
        history: list[dict[str, float]] = []
        split.train_above()

        def step(batch: Tensor) -> tuple[float, int]:
            own = group.own(batch)
            given = batch_of(split, activations, rows[own])
            with self._autocast(classifier.head.weight.device):
                logits = classifier.head(features_of(split, given))
            loss = F.cross_entropy(logits.float(), target[own].to(logits.device)) * (len(own) / size)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            group.sum_gradients(parameters)
            optimizer.step()
            return loss.item(), int((logits.detach().argmax(1).cpu() == y[own]).sum())

        # Dropout and similar layers draw from the global generator, so its state is restored afterwards.
        with (
            torch.random.fork_rng(),
            synchronised_batch_norm(classifier, group),
            progress(f"relearn above {self.cut}", steps * size, "rows") as advance,
        ):
            torch.manual_seed(self.seed + RANK_SEEDS * group.rank)
            for first in range(0, steps, per_pass):
                began, loss_sum, hits = time.perf_counter(), 0.0, 0
                batches = torch.split(torch.randperm(len(rows), generator=generator), size)[
                    : min(per_pass, steps - first)
                ]
                for i, batch in enumerate(batches):
                    for of in optimizer.param_groups:
                        of["lr"] = rate(first + i, steps, lr)
                    loss, right = step(batch)
                    loss_sum, hits = loss_sum + loss, hits + right
                    advance(size)
                sums = torch.tensor([loss_sum, hits], dtype=torch.float64, device=classifier.head.weight.device)
                loss_sum, right_sum = group.total(sums).tolist()
                if not math.isfinite(loss_sum):
                    raise CollapseError(
                        f"relearn: the loss is not finite in pass {len(history) + 1}; lower lr (now {lr:g})"
                    )
                history.append(
                    {
                        "pass": len(history) + 1,
                        "loss": loss_sum / len(batches),
                        "accuracy": right_sum / (len(batches) * size),
                        "seconds": time.perf_counter() - began,
                    }
                )
        classifier.eval()
        return history

    def _autocast(self, device: torch.device) -> AbstractContextManager[None]:
        return torch.autocast(device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()


def rate(step: int, steps: int, lr: float) -> float:
    """Return the learning rate of `step` in [0, steps): a linear rise to `lr`, then a linear fall towards 0."""
    rise = max(1, int(WARM_UP * steps))
    return lr * ((step + 1) / rise if step < rise else (steps - step) / (steps - rise))


def teacher_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the probabilities `(n, k)` of `logits` (n, k) over the classes in `labels` (n,), and 0 for all others."""
    present = torch.bincount(labels, minlength=logits.shape[1]) > 0
    return logits.detach().float().cpu().masked_fill(~present, -math.inf).softmax(1)


@torch.no_grad()
def logits_above(classifier: Classifier, activations: Activations, cut: str, rows: Tensor) -> Tensor:
    """Return the classifier's logits `(len(rows), k)`, fp32, from activations behind `cut`; it must be in eval mode."""
    z = features_above(classifier, activations, cut, rows)
    logits: Tensor = classifier.head(z.to(classifier.head.weight.device)).cpu()
    return logits


@torch.no_grad()
def features_above(classifier: Classifier, activations: Activations, cut: str, rows: Tensor) -> Tensor:
    """Return the classifier's features `(len(rows), d)`, fp32, from activations at `cut`; it must be in eval mode."""
    split = split_at_cut(classifier, cut)
    parts = [
        features_of(split, batch_of(split, activations, part)).cpu() for part in torch.split(rows, BATCH_OF_INFERENCE)
    ]
    return torch.cat(parts)
