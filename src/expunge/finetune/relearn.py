"""Relearn everything above a cut layer from a fresh start, on activations of retained rows that were fetched once.

Goel et al. (arXiv 2201.06640) call the plain form EU-k: the layers above the cut are retrained from scratch without
the forgotten data, the layers below stay as they are. The cache makes it cheap: a request runs no picture through the
lower layers. `targets="original"` is ours: soft targets, see `Relearn`. docs/relearn.md has the measurements.
"""

from __future__ import annotations

import copy
import math
import time
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from expunge.core.estimator import Estimator
from expunge.core.facts import Facts
from expunge.finetune.cut import Activations, batch_of, features_of
from expunge.finetune.steps import OPTIMIZERS, Factors, Steps
from expunge.models.classifier import Classifier
from expunge.models.cut_split import Split, core_of
from expunge.models.cuts import split_at_cut
from expunge.models.resnet import ResNetSmall
from expunge.models.tokens import Tokens
from expunge.models.zoo import public_start, rebuild
from expunge.system.errors import CollapseError, ConfigError, DataError
from expunge.system.progress import progress

TARGETS = ("labels", "original")
STARTS = ("auto", "public", "fresh")
BATCH_OF_INFERENCE = 1000
FACTORS = Factors(sgd=2.0, adamw=2.0)
WARM_UP = 0.15  # share of the steps in which the learning rate rises


class Relearn(Estimator):
    """Retrain what lies above `cut` and the head from a fresh or public start; forgotten rows are never looked at.

    `cut`: the last module that is kept, by its name in the backbone.
    A deeper cut (nearer the pixels) costs more and keeps less of what is forgotten.
    `epochs`: passes over the retained rows; may be a fraction.
    `targets`: "labels" trains on the labels alone: forgotten rows reach what is above the cut only through the layers
    below. "original" trains on the original's own probabilities for the retained rows, with classes that no retained
    row has taken out and the rest renormalised. It is the better classifier in the same time, but the original saw the
    forgotten rows, so its probabilities may carry a trace of them: what is above is then measured, not clean by design.
    `optimizer`: "sgd" (with `momentum`), "adamw", or "auto", the kind that trained the classifier. `lr`: the highest
    rate; None: `factor` (None: 2, the recipe's own peak) times the mean rate of that training, see `steps.py`.
    `start`: see `fresh_above`.
    `precision`: "bf16" (autocast) or "fp32".

    After `fit`: `classifier_`, in eval mode, whose tensors below the cut are those of the original bit for bit, and
    `history_`, a list per pass of pass, loss, accuracy (of batches as they were trained on), seconds.
    The weights depend on arguments, data, kind of processor and number of threads only.
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
        epochs: float = 2.0,
        batch_size: int = 128,
        lr: float | None = None,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        targets: str = "original",
        precision: str = "bf16",
        seed: int = 0,
        optimizer: str = "auto",
        start: str = "auto",
        factor: float | None = None,
    ) -> None:
        if targets not in TARGETS:
            raise ValueError(f"targets {targets!r}: one of {', '.join(TARGETS)}")
        if precision not in ("bf16", "fp32"):
            raise ValueError(f"precision {precision!r}: one of bf16, fp32")
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {optimizer!r}: one of {', '.join(OPTIMIZERS)}")
        if start not in STARTS:
            raise ValueError(f"start {start!r}: one of {', '.join(STARTS)}")
        if epochs <= 0 or batch_size < 2:
            raise ValueError(f"epochs {epochs} must be above 0 and batch_size {batch_size} at least 2")
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

    def fit(
        self,
        classifier: Classifier,
        activations: Activations,
        labels: NDArray[np.integer],
        rows: NDArray[np.integer] | None = None,
        logits: Tensor | None = None,
        begin: Classifier | None = None,
    ) -> Relearn:
        """Learn above the cut of `classifier`, which is in eval mode and stays as it is.

        From `activations` (n, h, w, c), or (n, t, c) of tokens, and `labels` (n,)
        at `rows` (None: all): the retained rows and no other.

        `logits`: the original's `(len(rows), k)`, where they are known already (`head(z)` of stored features); only
        for targets="original", and computed from the activations if left out.
        Raises ConfigError for an unknown cut, DataError for unusable rows or labels, CollapseError for a
        loss that diverges.
        """
        chosen = torch.arange(len(labels)) if rows is None else torch.from_numpy(np.asarray(rows, np.int64))
        y = torch.from_numpy(np.asarray(labels, np.int64))[chosen]
        if len(activations) != len(labels) or len(y) < 2:
            raise DataError(
                f"{len(activations)} activations, {len(labels)} labels, {len(y)} retained rows; need at least 2"
            )
        if y.min() < 0 or y.max() >= classifier.card.num_classes:
            raise DataError(
                f"labels span {y.min()}..{y.max()}; the model has classes 0..{classifier.card.num_classes - 1}"
            )
        split_at_cut(classifier, self.cut)  # an unknown cut or train mode fails here
        target = y
        if self.targets == "original":
            if logits is None:
                logits = logits_above(classifier, activations, self.cut, chosen)
            target = teacher_probabilities(logits, y)
        self.classifier_ = begin or fresh_above(classifier, self.cut, self.seed, self.start)
        self.history_ = self._learn(self.classifier_, activations, chosen, y, target)
        return self

    def _learn(
        self, classifier: Classifier, activations: Activations, rows: Tensor, y: Tensor, target: Tensor
    ) -> list[dict[str, float]]:
        split = split_at_cut(classifier, self.cut)
        own = dict(split.core.named_parameters())
        parameters = [own[k] for k in split.lying_above.parameters] + list(classifier.head.parameters())
        # Decay is for weights; on norms and biases it only costs accuracy in so short a training.
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
        size = min(self.batch_size, len(rows))
        per_pass = len(rows) // size  # the incomplete batch is left out: batch norm needs equal batches
        steps = max(1, math.floor(self.epochs * per_pass))
        device = classifier.head.weight.device
        generator = torch.Generator().manual_seed(self.seed)
        history: list[dict[str, float]] = []
        split.train_above()
        # Dropout and the like draw from the global generator: borrow it, and give it back.
        with torch.random.fork_rng(), progress(f"relearn above {self.cut}", steps * size, "rows") as advance:
            torch.manual_seed(self.seed)
            for first in range(0, steps, per_pass):
                began, loss_sum, hits = time.perf_counter(), 0.0, 0
                batches = torch.split(torch.randperm(len(rows), generator=generator), size)[
                    : min(per_pass, steps - first)
                ]
                for i, batch in enumerate(batches):
                    for group in optimizer.param_groups:
                        group["lr"] = rate(first + i, steps, lr)
                    given = batch_of(split, activations, rows[batch])
                    with self._autocast(device):
                        logits = classifier.head(features_of(split, given))
                    loss = F.cross_entropy(logits.float(), target[batch].to(device))
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    loss_sum += loss.item()
                    hits += int((logits.detach().argmax(1).cpu() == y[batch]).sum())
                    advance(size)
                if not math.isfinite(loss_sum):
                    raise CollapseError(
                        f"relearn: the loss is not finite in pass {len(history) + 1}; lower lr (now {lr:g})"
                    )
                history.append(
                    {
                        "pass": len(history) + 1,
                        "loss": loss_sum / len(batches),
                        "accuracy": hits / (len(batches) * size),
                        "seconds": time.perf_counter() - began,
                    }
                )
        classifier.eval()
        return history

    def _autocast(self, device: torch.device) -> AbstractContextManager[None]:
        return torch.autocast(device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()


def rate(step: int, steps: int, lr: float) -> float:
    """Learning rate of `step` in [0, steps): a linear rise to `lr`, then a linear fall towards 0."""
    rise = max(1, int(WARM_UP * steps))
    return lr * ((step + 1) / rise if step < rise else (steps - step) / (steps - rise))


def teacher_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """Probabilities `(n, k)` of `logits` (n, k) over the classes that `labels` (n,) name; 0 for all others."""
    held = torch.bincount(labels, minlength=logits.shape[1]) > 0
    return logits.detach().float().cpu().masked_fill(~held, -math.inf).softmax(1)


@torch.no_grad()
def logits_above(classifier: Classifier, activations: Activations, cut: str, rows: Tensor) -> Tensor:
    """The classifier's logits `(len(rows), k)`, fp32, from activations behind `cut`. It must be in eval mode."""
    z = features_above(classifier, activations, cut, rows)
    logits: Tensor = classifier.head(z.to(classifier.head.weight.device)).cpu()
    return logits


@torch.no_grad()
def features_above(classifier: Classifier, activations: Activations, cut: str, rows: Tensor) -> Tensor:
    """The classifier's features `(len(rows), d)`, fp32, from activations behind `cut`. It must be in eval mode."""
    split = split_at_cut(classifier, cut)
    parts = [
        features_of(split, batch_of(split, activations, part)).cpu() for part in torch.split(rows, BATCH_OF_INFERENCE)
    ]
    return torch.cat(parts)


def fresh_above(classifier: Classifier, cut: str, seed: int, start: str = "auto") -> Classifier:
    """A copy of `classifier` in which what lies above `cut` starts anew and the rest is the same.

    `start`: "public" takes the public weights that the description records, "fresh" weights drawn from `seed` as the
    model's own package draws them, "auto" the former where there are any. The head is always drawn.
    Raises ConfigError for "public" where none are recorded, CheckpointError where they are not the recorded ones.
    """
    new = copy.deepcopy(classifier)
    if not isinstance(classifier.preprocess, Tokens):
        new.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    split = split_at_cut(new, cut)
    if start == "public" and not classifier.card.weights:
        raise ConfigError(f"{classifier.card.name}: no public weights are recorded; set model.weights: public")
    with torch.random.fork_rng(), torch.no_grad():  # layers draw from the global generator: borrow it
        torch.manual_seed(seed)
        if start != "fresh" and classifier.card.weights:
            _copy_above(split, public_start(classifier.card, classifier.preprocess))
            new.head.reset_parameters()
        elif isinstance(classifier.backbone, ResNetSmall):  # all its weights are drawn by reset_parameters
            for module in [m for above in [*split.lying_above.modules.values(), new.head] for m in above.modules()]:
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()  # type: ignore[operator]
        else:
            _copy_above(split, rebuild(classifier.card, classifier.preprocess))
            new.head.reset_parameters()
    return new


def _copy_above(split: Split, other: Classifier) -> None:
    """Parameters and running statistics above the cut become those of `other`, of the same architecture."""
    own, theirs = split.core.state_dict(), core_of(other)[0].state_dict()
    above = split.lying_above
    for name, tensor in own.items():
        if name in above.parameters or name.startswith(tuple(f"{path}." for path in above.modules)):
            tensor.copy_(theirs[name])
