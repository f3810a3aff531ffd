"""The training loop that methods share: a copy of the classifier, the order of rows, and SGD over phases.

Batches with retained rows are normalised by their own statistics and update batch norm's running ones. Batches of
forgotten rows alone are normalised by the running statistics and do not update them, because these describe the inputs
of the deployed model. A method that deviates from this documents it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.core.estimator import Estimator
from expunge.finetune.rows import Examples, checked, checked_unseen
from expunge.finetune.rows import Index as Index
from expunge.finetune.steps import OPTIMIZERS, PRECISIONS, Factors, Steps, frozen_norms, uses_bf16
from expunge.models.classifier import Classifier
from expunge.system.errors import CollapseError
from expunge.system.progress import progress

# A loss returns its terms by name. Their sum is minimised, and each term is reported.
Terms = dict[str, Tensor]
RETAIN, FORGET, MIXED, RELABEL = range(4)  # independent random streams of one seed


@dataclass(frozen=True)
class Phase:
    """A part of an epoch: a step on `loss(*batch)` for every batch, which is a tuple of row indices."""

    epoch: int
    name: str
    batches: Sequence[tuple[Index, ...]]
    loss: Callable[..., Terms]


@dataclass(eq=False, repr=False, kw_only=True)
class Updater(Estimator):
    """Base of the methods that take SGD steps on a copy of the classifier.

    epochs         number of passes; each method documents over which rows
    lr             learning rate of the first step; it falls to zero along a cosine. None takes `factor` times the mean
                   rate of the recipe that trained the classifier
    factor         None takes the method's own, see `steps.py`
    optimizer      "sgd", "adamw", or "auto", the kind of the recipe
    frozen_norm    batch norm uses and keeps its running statistics in all batches; also set by a recipe that did so
    momentum       of SGD, with Nesterov's form where it is above 0
    weight_decay   added to the gradient; decoupled from it under AdamW
    batch_size     maximal number of rows in a batch; a pass is split into batches of nearly equal size
    retain_share   share of the retained rows that an epoch uses, drawn anew in each epoch
    precision      of the forward pass: "fp32", "bf16" (autocast), or "auto", the recipe's; losses are float32
    seed           of orders, draws and dropout; equal arguments, data and machine give equal weights

    Fitted: `classifier_`, a new classifier in eval mode; `history_`, per epoch the means of the loss terms.
    """

    factors: ClassVar[Factors] = Factors(sgd=0.1)
    epochs: int = 1
    lr: float | None = None
    factor: float | None = None
    optimizer: str = "auto"
    frozen_norm: bool = False
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    retain_share: float = 1.0
    precision: str = "auto"
    seed: int = 0
    classifier_: Classifier = field(init=False)
    history_: list[dict[str, float]] = field(init=False)

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not 0 < self.retain_share <= 1:
            raise ValueError(
                f"epochs and batch_size must be at least 1 and retain_share in (0, 1], got {self.epochs}, "
                f"{self.batch_size} and {self.retain_share}"
            )
        self._check_descent()

    def _check_descent(self) -> None:
        for key, named, known in (("precision", self.precision, PRECISIONS), ("optimizer", self.optimizer, OPTIMIZERS)):
            if named not in known:
                raise ValueError(f"{key} must be one of {', '.join(known)}, got {named!r}")
        for name, value in (("lr", self.lr), ("factor", self.factor)):
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative, got {value}; null takes the value of the recipe")

    def fit(
        self,
        classifier: Classifier,
        inputs: Examples,
        labels: NDArray[Any],
        retain_rows: NDArray[Any],
        forget_rows: NDArray[Any] | None,
        unseen_rows: NDArray[Any] | None = None,
    ) -> Self:
        """Unlearn `forget_rows` of `inputs` and `labels (n,)`; `classifier` is not changed.

        `inputs` are images, uint8 `(n, h, w, c)`, or token ids of texts, int32 `(n, t)`, negative after their end.

        `forget_rows` None means that `labels` were corrected and no row is removed, for methods that use only retained
        rows. `classifier` was never trained on `unseen_rows`, which are neither test rows nor rows by which settings
        are chosen. Raises DataError for unusable rows or labels, CollapseError for a non-finite loss or weight.
        """
        run = Run(self, classifier, inputs, labels, retain_rows, forget_rows, unseen_rows)
        self.history_ = self._descend(run)
        self.classifier_ = run.student.eval()
        return self

    def _descend(self, run: Run) -> list[dict[str, float]]:
        return run.train(self.phases(run))

    def phases(self, run: Run) -> list[Phase]:
        """Return the phases of the training, in order."""
        raise NotImplementedError


class Run:
    """The state of one fit: the student (initially a copy of the given classifier), the original, and the rows."""

    def __init__(
        self,
        options: Updater,
        classifier: Classifier,
        inputs: Examples,
        labels: NDArray[Any],
        retain_rows: NDArray[Any],
        forget_rows: NDArray[Any] | None,
        unseen_rows: NDArray[Any] | None = None,
    ) -> None:
        self.options = options
        self.batch_size = options.batch_size
        self.steps = Steps.of(classifier.card, options.factors, options.lr, options.factor, options.optimizer)
        self.frozen_norm = frozen_norms(classifier.card, options.frozen_norm)
        self.bf16 = uses_bf16(classifier.card, options.precision)
        self.labels, self.retain, self.forget = checked(classifier, inputs, labels, retain_rows, forget_rows)
        self.unseen = checked_unseen(self.labels, self.retain, self.forget, unseen_rows)
        self.inputs = inputs
        self.original = copy.deepcopy(classifier).eval().requires_grad_(False)
        student = copy.deepcopy(classifier).requires_grad_(True)
        self.student: Classifier = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norms = [m for m in self.student.modules() if isinstance(m, _BatchNorm)]
        self.device = classifier.head.weight.device

    def rng(self, stream: int, epoch: int = 0) -> np.random.Generator:
        """Return the generator of a random stream, such as FORGET, in an epoch."""
        return np.random.default_rng([self.options.seed, stream, epoch])

    def split(self, rows: Index) -> list[Index]:
        """Split into batches of at most `batch_size` and similar size, since batch norm needs more than one row."""
        return np.array_split(rows, max(1, math.ceil(len(rows) / self.batch_size)))

    def retained(self, epoch: int) -> list[Index]:
        """Return batches of the retained rows that the epoch uses, shuffled."""
        return self.split(self._retained_rows(epoch))

    def forgotten(self, epoch: int) -> list[Index]:
        """Return batches of all forgotten rows, shuffled."""
        return self.split(self.rng(FORGET, epoch).permutation(self.forget))

    def pairs(self, epoch: int) -> list[tuple[Index, Index]]:
        """Return pairs of a retained and a forgotten batch; the side with fewer batches is repeated."""
        retained, forgotten = self.retained(epoch), self.forgotten(epoch)
        n = max(len(retained), len(forgotten))
        return list(zip(islice(cycle(retained), n), islice(cycle(forgotten), n), strict=True))

    def mixed(self, epoch: int) -> list[Index]:
        """Return batches of retained and forgotten rows shuffled together."""
        rows = np.concatenate([self._retained_rows(epoch), self.forget])
        return self.split(self.rng(MIXED, epoch).permutation(rows))

    def _retained_rows(self, epoch: int) -> Index:
        size = max(1, round(self.options.retain_share * len(self.retain)))
        return self.rng(RETAIN, epoch).permutation(self.retain)[:size]

    @property
    def retained_classes(self) -> Index:
        """The classes with a retained row, ascending."""
        return np.unique(self.labels[self.retain])

    def y(self, rows: Index) -> Tensor:
        """Return the labels `(b,)` of rows, on the device of the model."""
        return torch.from_numpy(self.labels[rows]).to(self.device)

    def logits(self, rows: Index, frozen_norm: bool = False) -> Tensor:
        """Return the student's logits `(b, C)` float32; with `frozen_norm` batch norm keeps its running statistics."""
        return self.logits_of(self.inputs[rows], frozen_norm)

    def logits_of(self, inputs: Examples | Tensor, frozen_norm: bool = False) -> Tensor:
        """Return logits as `logits` does, for given inputs instead of rows, which may be preprocessed."""
        self._freeze_norm(frozen_norm)
        with self.autocast():
            out: Tensor = self.student(inputs)
        return out.float()

    def features(self, rows: Index, frozen_norm: bool = False) -> Tensor:
        """Return the student's features `(b, d)` float32."""
        self._freeze_norm(frozen_norm)
        with self.autocast():
            z = self.student.features(self.inputs[rows])
        return z.float()

    @torch.no_grad()
    def ask(self, teacher: Classifier, rows: Index) -> Tensor:
        """Return the logits `(b, C)` float32 of `teacher`, a model in eval mode."""
        with self.autocast():
            out: Tensor = teacher(self.inputs[rows])
        return out.float()

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which forward passes run: bf16 where the precision asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def _freeze_norm(self, frozen: bool) -> None:
        for module in self.norms:
            module.train(not (frozen or self.frozen_norm))

    def train(
        self,
        phases: Sequence[Phase],
        parameters: Mapping[str, nn.Parameter] | None = None,
        movable: Mapping[str, Tensor] | None = None,
        adjust: Callable[[Mapping[str, nn.Parameter]], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[dict[str, float]]:
        """Train `parameters` (None: all of the student's) through the phases; return per epoch the means of the terms.

        `movable` holds a boolean mask per name; weights outside it do not change, not even by decay or momentum.
        `adjust` may change the gradients in place after each backward pass, before decay and mask. `stop` is called
        after each phase; if it returns True, training ends.
        """
        parameters = dict(self.student.named_parameters()) if parameters is None else parameters
        o = self.options
        optimizer = self.steps.make(parameters.values(), o.momentum)
        steps, step = sum(len(phase.batches) for phase in phases), 0
        epochs = 1 + max((phase.epoch for phase in phases), default=0)
        history: dict[int, dict[str, float]] = {}
        self.student.train()
        # Dropout and similar layers draw from the global generator, so its state is restored afterwards.
        with torch.random.fork_rng():
            torch.manual_seed(o.seed)
            for phase in phases:
                means: dict[str, float] = {}
                rows = sum(len(batch[0]) for batch in phase.batches)
                what = f"{type(o).__name__}, {phase.name}"
                with progress(what, rows, "rows", phase.epoch, epochs) as advance:
                    for batch in phase.batches:
                        rate = self.steps.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
                        for group in optimizer.param_groups:
                            group["lr"] = rate
                        terms = phase.loss(*batch)
                        optimizer.zero_grad(set_to_none=True)
                        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
                        if adjust is not None:
                            adjust(parameters)
                        self._decay_and_mask(parameters, movable, rate)
                        optimizer.step()
                        for name, value in terms.items():
                            means[name] = means.get(name, 0.0) + value.item() * len(batch[0]) / rows
                        step += 1
                        advance(len(batch[0]))
                self._refuse_divergence(means, phase)
                history.setdefault(phase.epoch, {"epoch": phase.epoch + 1}).update(means)
                if stop is not None and stop():
                    break
        self._refuse_ruin()
        return list(history.values())

    def _decay_and_mask(
        self, parameters: Mapping[str, nn.Parameter], movable: Mapping[str, Tensor] | None, rate: float
    ) -> None:
        """Add decay to the gradient, then mask it: neither decay nor momentum changes a weight outside the mask.

        Under AdamW shrink the weights inside the mask by the factor `1 - rate * decay` instead.
        """
        decay = self.options.weight_decay
        with torch.no_grad():
            for name, parameter in parameters.items():
                if parameter.grad is None:
                    continue
                if self.steps.optimizer == "sgd":
                    parameter.grad.add_(parameter, alpha=decay)
                else:
                    shrunk = parameter * (1 - rate * decay)
                    parameter.copy_(shrunk if movable is None else torch.where(movable[name], shrunk, parameter))
                if movable is not None:
                    parameter.grad.masked_fill_(~movable[name], 0.0)

    def _refuse_divergence(self, means: Mapping[str, float], phase: Phase) -> None:
        if not all(map(math.isfinite, means.values())):
            raise self._collapse(f"the loss is {means} in epoch {phase.epoch + 1}")

    def _refuse_ruin(self) -> None:
        if not all(bool(torch.isfinite(t).all()) for t in self.student.state_dict().values()):
            raise self._collapse("weights are not finite after the last step")

    def _collapse(self, what: str) -> CollapseError:
        return CollapseError(f"{type(self.options).__name__}: {what}; lower lr (now {self.steps.lr:g})")


def single(batches: Iterable[Index]) -> list[tuple[Index]]:
    """Return each batch as the only element of a tuple, as Phase wants it."""
    return [(rows,) for rows in batches]


def kl(target: Tensor, logits: Tensor) -> Tensor:
    """Return KL(target || softmax(logits)) in nats, summed over classes and averaged over rows; `target (b, C)`."""
    # `reduction="mean"` must not be used here, because it also divides by the number of classes.
    return F.kl_div(F.log_softmax(logits, 1), target, reduction="batchmean")
