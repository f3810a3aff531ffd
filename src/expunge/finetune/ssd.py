"""Selective synaptic dampening: shrink the weights that are more important for forgotten rows than for all rows."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from expunge.core.estimator import Estimator
from expunge.core.facts import Facts
from expunge.finetune.row_gradients import row_gradients
from expunge.finetune.rows import Examples, Index, checked
from expunge.models.classifier import Classifier
from expunge.system.errors import NoEffectError
from expunge.system.progress import progress

Fisher = Literal["per-sample", "batch"]
CHUNK = 64  # number of rows whose gradients are held in memory at once


@dataclass(eq=False, repr=False, kw_only=True)
class Ssd(Estimator):
    """Dampen weights by the Fisher matrix, without training; Foster et al., arXiv 2308.07707, equations 3 to 5.

        selected:  F_f > alpha F      w <- min(dampening F / F_f, 1) w       (dampening: the paper's lambda)

    F_f and F are diagonals of the empirical Fisher matrix on forgotten and on all training rows.

    fisher        "batch", as in the published code: mean over batches of the squared gradient of the batch's mean loss.
                  It depends on batch_size, and grows with the similarity of the rows in a batch.
                  "per-sample", as in the paper: mean over rows of the squared gradient of the row's loss.
                  Then F >= (n_f / n) F_f, so an `alpha` of n / n_f or more selects no weight.
    fisher_rows   at most this many rows of each set are used, drawn with `seed`; None takes all

    It differs from the released code (if-loops/selective-synaptic-dampening) in three points. Importances are computed
    from at most `fisher_rows` rows, not from all. An `alpha` that selects nothing is an error and does not return an
    unchanged model. The default of alpha is 20, because 10 was published for other networks and another batch size.

    Eval mode, true labels, float32. Batch norm's running statistics do not change. Fitted: `classifier_`; `selected_`,
    the share of selected weights; `history_`, one entry. Raises NoEffectError when no weight is selected, naming the
    largest ratio.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("inputs", "retained rows"), "weights", "closed form", "arXiv 2308.07707"
    )
    for_rows: ClassVar[Mapping[str, Any]] = {"alpha": 6.0}
    alpha: float = 20.0
    dampening: float = 1.0
    fisher: Fisher = "batch"
    fisher_rows: int | None = 4096
    batch_size: int = 256
    seed: int = 0
    classifier_: Classifier = field(init=False)
    history_: list[dict[str, float]] = field(init=False)
    selected_: float = field(init=False)

    def __post_init__(self) -> None:
        if self.fisher not in ("per-sample", "batch"):
            raise ValueError(f"fisher must be per-sample or batch, got {self.fisher!r}")
        if self.alpha <= 0 or self.dampening <= 0:
            raise ValueError(f"alpha and dampening must be above 0, got {self.alpha} and {self.dampening}")

    def fit(
        self,
        classifier: Classifier,
        inputs: Examples,
        labels: NDArray[Any],
        retain_rows: NDArray[Any],
        forget_rows: NDArray[Any],
    ) -> Self:
        """Unlearn `forget_rows`; arguments and errors as in Updater.fit."""
        y, retain, forget = checked(classifier, inputs, labels, retain_rows, forget_rows)
        model = copy.deepcopy(classifier).eval().requires_grad_(True)
        rng = np.random.default_rng(self.seed)
        sample = [self._thin(rows, rng) for rows in (forget, retain)]
        if self.fisher == "batch":
            sample[1] = self._thin(np.concatenate([retain, forget]), rng)
            of_forget, of_all = (batch_fisher(model, inputs, y, rows, self.batch_size) for rows in sample)
        else:
            of_forget, of_retain = (per_sample_fisher(model, inputs, y, rows) for rows in sample)
            n = len(retain) + len(forget)
            of_all = {k: (len(forget) * of_forget[k] + len(retain) * of_retain[k]) / n for k in of_forget}
        self.selected_ = self._dampen(model, of_forget, of_all)
        self.history_ = [{"selected": self.selected_}]
        self.classifier_ = model
        return self

    def _thin(self, rows: Index, rng: np.random.Generator) -> Index:
        return rng.permutation(rows)[: self.fisher_rows]

    @torch.no_grad()
    def _dampen(self, model: Classifier, of_forget: dict[str, Tensor], of_all: dict[str, Tensor]) -> float:
        selected, weights, largest = 0, 0, 0.0
        for name, parameter in model.named_parameters():
            f, a = of_forget[name], of_all[name]
            chosen = f > self.alpha * a
            shrink = (self.dampening * a / f.clamp_min(torch.finfo(f.dtype).tiny)).clamp_max(1.0)
            parameter.mul_(torch.where(chosen, shrink, torch.ones_like(shrink)).to(parameter.dtype))
            selected, weights = selected + int(chosen.sum()), weights + chosen.numel()
            ratio = (f / a.clamp_min(torch.finfo(a.dtype).tiny))[f > 0]
            largest = max(largest, float(ratio.max()) if len(ratio) else 0.0)
        if not selected:
            raise NoEffectError(
                f"Ssd: alpha {self.alpha:g} selects no weight, so nothing would be forgotten; set alpha below "
                f"{largest:.3g}, the largest ratio of importances"
            )
        return selected / weights


def per_sample_fisher(model: Classifier, inputs: Examples, labels: Index, rows: Index) -> dict[str, Tensor]:
    """Return the mean over rows of the squared gradient of each row's cross-entropy, by name, float64; eval mode."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, parameters, (x[None],))
        return cross_entropy(logits, y[None])

    gradients = row_gradients(model, loss)
    device = model.head.weight.device
    with progress("per-sample Fisher", len(rows), "rows") as advance:
        for part in np.array_split(rows, -(-len(rows) // CHUNK)):
            x = model.preprocess(inputs[part]).to(device)
            for name, g in gradients(parameters, x, torch.from_numpy(labels[part]).to(device)).items():
                total[name] += g.square().sum(0, dtype=torch.float64)
            advance(len(part))
    return {name: t / len(rows) for name, t in total.items()}


def batch_fisher(model: Classifier, inputs: Examples, labels: Index, rows: Index, batch_size: int) -> dict[str, Tensor]:
    """Return the mean over batches of the squared gradient of each batch's mean cross-entropy, by name, float64.

    Batches are taken in the order of `rows`.
    """
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    batches = np.array_split(rows, -(-len(rows) // batch_size))
    with progress("batch Fisher", len(rows), "rows") as advance:
        for part in batches:
            y = torch.from_numpy(labels[part]).to(model.head.weight.device)
            loss = cross_entropy(model(inputs[part]), y)
            for name, g in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
                total[name] += g.double().square()
            advance(len(part))
    return {name: t / len(batches) for name, t in total.items()}
