"""MinNorm-OG: towards the weights of least norm that keep the outputs for retained rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.core.facts import Facts
from expunge.finetune.loop import Index, Phase, Run, Terms, Updater, single
from expunge.finetune.row_gradients import row_gradients
from expunge.finetune.steps import Factors


@dataclass(eq=False, repr=False, kw_only=True)
class MinNorm(Updater):
    """Apply `w <- w - c (I - P) w`, then a gradient step on CE, for each retained batch; arXiv 2505.22601.

    From Block, Mokhtari and Shakkottai. P is the projection onto the span of the gradients of the largest logit of some
    rows of the batch, so these logits do not change to first order.

    shrink   c, in [0, 1]; 0 is FineTune. It is 1 / (1 + lambda) of the paper
    decay    factor on c after each epoch
    rows     number of rows of a batch whose gradients are taken, divided evenly among labels
    last     number of epochs at the end without the projection

    Batch norm's weights are excluded, because a network does not depend on the norms of the layers that batch norm
    follows. Where the gradients span all weights, as for a small head on many rows, the projection changes nothing. An
    epoch is a pass over the retained rows; forgotten rows are not used. Other arguments as in Updater.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("inputs", "retained rows"), "weights", "passes over retained rows", "arXiv 2505.22601"
    )
    shrink: float = 0.1
    decay: float = 0.9
    rows: int = 50
    last: int = 1
    epochs: int = 2
    factors: ClassVar[Factors] = Factors(sgd=0.05)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shrink <= 1 or not 0 < self.decay <= 1 or self.rows < 1 or self.last < 0:
            raise ValueError(
                f"shrink must be in [0, 1], decay in (0, 1], rows at least 1 and last at least 0, got {self.shrink}, "
                f"{self.decay}, {self.rows} and {self.last}"
            )

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch over retained rows; each step with c > 0 shrinks the weights first."""

        def of(epoch: int) -> Phase:
            c = self.shrink * self.decay**epoch if epoch < self.epochs - self.last else 0.0

            def loss(rows: Index) -> Terms:
                if c > 0:
                    shrink(run, evenly(run.labels, rows, self.rows), c)
                return {"retain": cross_entropy(run.logits(rows), run.y(rows))}

            return Phase(epoch, "retained", single(run.retained(epoch)), loss)

        return [of(epoch) for epoch in range(self.epochs)]


def evenly(labels: Index, rows: Index, count: int) -> Index:
    """Return at most `count` of `rows`, the first `count // classes` (at least one) of each label."""
    classes = np.unique(labels[rows])
    each = max(1, count // len(classes))
    return np.concatenate([rows[labels[rows] == c][:each] for c in classes])[:count]


def shrink(run: Run, rows: Index, c: float) -> None:
    """Apply `w <- w - c (I - P) w` to the student's weights outside batch norm, in place.

    P is computed from the logits of `rows` in eval mode.
    """
    model = run.student.eval()
    parameters = shrinkable(model)
    fixed = {name: p.detach() for name, p in model.named_parameters() if name not in parameters}
    free = {name: p.detach() for name, p in parameters.items()}

    def largest(free: dict[str, Tensor], x: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, {**fixed, **free}, (x[None],))
        return logits.amax()

    x = model.preprocess(run.inputs[rows]).to(run.device)
    found = row_gradients(model, largest)(free, x)
    gradients = torch.cat([found[name].flatten(1) for name in free], 1)
    flat = torch.cat([p.flatten() for p in free.values()])
    moved = flat - c * outside(flat, gradients)
    with torch.no_grad():
        for p, part in zip(parameters.values(), torch.split(moved, [p.numel() for p in free.values()]), strict=True):
            p.copy_(part.view(p.shape))
    model.train()


def outside(w: Tensor, gradients: Tensor) -> Tensor:
    """Return `(I - P) w`, `(p,)`, with P the projection onto the span of the rows of `gradients (n, p)`.

    P is computed from the products of the rows, `(n, n)` float64, because p is the number of weights of a network.
    """
    rows = gradients.double()
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    tolerance = max(gradients.shape) * torch.finfo(gradients.dtype).eps  # of singular values, the roots of `values`
    above = values > values[-1] * tolerance**2
    coefficients = vectors[:, above] @ ((vectors[:, above].T @ (rows @ w.double())) / values[above])
    result: Tensor = w - (coefficients @ rows).to(w)
    return result


def shrinkable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters but those of batch norm, by name."""
    norms = {name for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    return {name: p for name, p in model.named_parameters() if name.rpartition(".")[0] not in norms}
