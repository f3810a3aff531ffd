"""One ascent step along the gradient of forgotten rows: influence functions with the identity as the Hessian."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from expunge.core.estimator import Estimator
from expunge.core.facts import Facts
from expunge.finetune.rows import Examples, checked
from expunge.models.classifier import Classifier


@dataclass(eq=False, repr=False, kw_only=True)
class OneStep(Estimator):
    """Set the weights to `w + strength / n_r sum_f grad l`; after IAU, arXiv 2507.23257.

    The paper's code takes one step of Adam, lr sign(g), instead. It discards all magnitudes, and needs an original that
    was trained for it. The form here is exact for the loss ||w - x||^2 / 2 and a first-order approximation elsewhere
    [derived]. Eval mode; one pass over the forgotten rows. Fitted: `classifier_`, `history_`.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("inputs",), "weights", "closed form", "arXiv 2507.23257, reconstruction"
    )
    strength: float = 1.0
    batch_size: int = 256
    classifier_: Classifier = field(init=False)
    history_: list[dict[str, float]] = field(init=False)

    def __post_init__(self) -> None:
        if self.strength <= 0 or self.batch_size < 1:
            raise ValueError(
                f"strength must be above 0 and batch_size at least 1, got {self.strength} and {self.batch_size}"
            )

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
        parameters = list(model.parameters())
        total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
        loss = 0.0
        for part in np.array_split(forget, -(-len(forget) // self.batch_size)):
            target = torch.from_numpy(y[part]).to(model.head.weight.device)
            value = cross_entropy(model(inputs[part]).float(), target, reduction="sum")
            for t, g in zip(total, torch.autograd.grad(value, parameters), strict=True):
                t += g.double()
            loss += float(value.detach())
        with torch.no_grad():
            for p, t in zip(parameters, total, strict=True):
                p.add_((self.strength / len(retain) * t).to(p.dtype))
        self.history_ = [{"forget": loss / len(forget)}]
        self.classifier_ = model
        return self
