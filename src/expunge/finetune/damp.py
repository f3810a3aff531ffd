"""DAMP: each layer's weights lose the part of the forgotten class's prototype outside the retained ones' span."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.core.estimator import Estimator
from expunge.core.facts import Facts
from expunge.finetune.layer_inputs import LayerInputs
from expunge.finetune.loop import RELABEL
from expunge.finetune.rows import Examples, Index, checked
from expunge.models.classifier import Classifier
from expunge.system.errors import DataError


@dataclass(eq=False, repr=False, kw_only=True)
class Damp(Estimator):
    """Set `W <- W (I - s_l U U')`, U a basis of the forgotten prototypes' residuals; nothing is trained.

    After DAMP, arXiv 2604.15166, of which only an outline was available: a reconstruction. A prototype is the mean of a
    layer's inputs over the rows and positions of a class. Its residual is its part outside the span of the retained
    classes' prototypes, so the outputs of each layer for these prototypes do not change. `s_l` grows with depth up to
    `strength`: s_l = strength ((l + 1) / layers) ** growth.

    rows   rows per class from which prototypes are computed, drawn with `seed`; None takes all

    It changes ungrouped convolutions and linear layers, the head included; biases and batch norm do not change. Whole
    classes only. A layer with no more input directions than retained classes has no residual. Fitted: `classifier_`,
    `history_` (one entry), `residuals_`, name -> the residuals' share of the prototypes' length.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes",), ("inputs", "retained rows"), "weights", "closed form", "arXiv 2604.15166, reconstruction"
    )
    strength: float = 1.0
    growth: float = 1.0
    rows: int | None = 200
    batch_size: int = 256
    seed: int = 0
    classifier_: Classifier = field(init=False)
    history_: list[dict[str, float]] = field(init=False)
    residuals_: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1 or self.growth < 0:
            raise ValueError(
                f"strength must be in [0, 1] and growth must not be negative, got {self.strength} and {self.growth}"
            )

    def fit(
        self,
        classifier: Classifier,
        inputs: Examples,
        labels: NDArray[Any],
        retain_rows: NDArray[Any],
        forget_rows: NDArray[Any],
    ) -> Self:
        """Unlearn `forget_rows`, arguments as in Updater.fit. Raises DataError where a forgotten class keeps rows."""
        y, retain, forget = checked(classifier, inputs, labels, retain_rows, forget_rows)
        partly = np.intersect1d(y[retain], y[forget])
        if len(partly):
            raise DataError(
                f"Damp is for whole classes, but class {partly[0]} keeps retained rows, so its prototype stays. Use "
                "regun, fine-tune or relearn for single rows"
            )
        model = copy.deepcopy(classifier).eval()
        of_retain, of_forget = (self._prototypes(model, inputs, y, rows) for rows in (retain, forget))
        self.residuals_ = {}
        for depth, (name, forgotten) in enumerate(of_forget.items()):
            basis, share = residual_basis(of_retain[name], forgotten)
            self.residuals_[name] = share
            s = self.strength * ((depth + 1) / len(of_forget)) ** self.growth
            with torch.no_grad():
                weight = model.get_parameter(name)
                flat = weight.reshape(len(weight), -1).double()
                weight.copy_((flat - s * (flat @ basis) @ basis.T).reshape(weight.shape))
        self.history_ = [{"residual": float(np.mean(list(self.residuals_.values())))}]
        self.classifier_ = model
        return self

    @torch.no_grad()
    def _prototypes(self, model: Classifier, inputs: Examples, labels: Index, rows: Index) -> dict[str, Tensor]:
        """Return the mean inputs `(classes, k)` float64 of every layer, in the order of the network."""
        rng = np.random.default_rng([self.seed, RELABEL])
        found: dict[str, list[Tensor]] = {}
        for c in np.unique(labels[rows]):
            of_class = rng.permutation(rows[labels[rows] == c])[: self.rows]
            for name, total in self._sums(model, inputs, of_class).items():
                found.setdefault(name, []).append(total)
        return {name: torch.stack(parts) for name, parts in found.items()}

    def _sums(self, model: Classifier, inputs: Examples, rows: Index) -> dict[str, Tensor]:
        means: dict[str, Tensor] = {}

        def see(name: str, h: Tensor, count: int) -> None:
            if h.shape[1] == 1:  # one group
                part = h.mean((0, 1)) * (
                    count / len(rows)
                )  # a text encoder takes the rows of a batch in several groups
                means[name] = means[name] + part if name in means else part

        with LayerInputs(model, see):
            for part in np.array_split(rows, -(-len(rows) // self.batch_size)):
                model(inputs[part])
        return means


def residual_basis(retained: Tensor, forgotten: Tensor) -> tuple[Tensor, float]:
    """Return an orthonormal basis `(k, r)` of the residuals of `forgotten (f, k)`, and their share of its length.

    The residuals are the parts of the rows outside the span of the rows of `retained (c, k)`. The share is in [0, 1].
    """
    _, values, vectors = torch.linalg.svd(retained, full_matrices=False)
    span = vectors[values > 1e-10 * values[0]]
    residual = forgotten - forgotten @ span.T @ span
    length = float(torch.linalg.vector_norm(forgotten))
    share = float(torch.linalg.vector_norm(residual)) / length if length else 0.0
    _, sizes, directions = torch.linalg.svd(residual, full_matrices=False)
    return directions[sizes > 1e-8 * max(length, 1e-300)].T, share
