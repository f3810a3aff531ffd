"""Loss-free synaptic dampening: SSD with the sensitivity of the outputs in place of the Fisher matrix."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from expunge.core.facts import Facts
from expunge.finetune.row_gradients import row_gradients
from expunge.finetune.rows import Examples, Index, checked
from expunge.finetune.ssd import CHUNK, Ssd
from expunge.models.classifier import Classifier
from expunge.system.progress import progress


@dataclass(eq=False, repr=False, kw_only=True)
class LossFreeSsd(Ssd):
    """Dampening by the importance `O = mean_x | d ||f(x)||^2 / dw |`, f the logits; Foster et al., arXiv 2402.19308.

        selected:  O_f > alpha O_r      w <- min(dampening O_r / O_f, 1) w

    O_r is computed on retained rows. The paper uses all rows, the forgotten ones included: then O_f <= (n / n_f) O, and
    an alpha of n / n_f or more selects nothing [derived]. The absolute value is taken per row, so the result does not
    depend on order or batches. Labels are not used and `fisher` has no effect. Other arguments as in Ssd.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("inputs", "retained rows"), "weights", "closed form", "arXiv 2402.19308"
    )
    for_rows: ClassVar[Mapping[str, Any]] = {}
    alpha: float = 5.0

    def fit(
        self,
        classifier: Classifier,
        inputs: Examples,
        labels: NDArray[Any],
        retain_rows: NDArray[Any],
        forget_rows: NDArray[Any],
    ) -> Self:
        """Unlearn `forget_rows`; arguments and errors as in Updater.fit."""
        _, retain, forget = checked(classifier, inputs, labels, retain_rows, forget_rows)
        model = copy.deepcopy(classifier).eval().requires_grad_(True)
        rng = np.random.default_rng(self.seed)
        of_forget, of_retain = (output_sensitivity(model, inputs, self._thin(rows, rng)) for rows in (forget, retain))
        self.selected_ = self._dampen(model, of_forget, of_retain)
        self.history_ = [{"selected": self.selected_}]
        self.classifier_ = model
        return self


def output_sensitivity(model: Classifier, inputs: Examples, rows: Index) -> dict[str, Tensor]:
    """Return the mean over rows of | d ||f(x)||^2 / dw |, by parameter name, float64; eval mode."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}

    def energy(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, parameters, (x[None],))
        return logits.square().sum()

    gradients = row_gradients(model, energy)
    device = model.head.weight.device
    with progress("output sensitivity", len(rows), "rows") as advance:
        for part in np.array_split(rows, -(-len(rows) // CHUNK)):
            x = model.preprocess(inputs[part]).to(device)
            for name, g in gradients(parameters, x).items():
                total[name] += g.abs().sum(0, dtype=torch.float64)
            advance(len(part))
    return {name: t / len(rows) for name, t in total.items()}
