"""Boundary unlearning: forgotten rows are moved across the nearest boundary, or to a class that is then removed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from expunge.core.facts import Facts
from expunge.finetune.kinds import has_retained_rows, need_pixels, need_whole_classes
from expunge.finetune.loop import Index, Phase, Run, Terms, Updater, kl, single

WHY = "the boundary is that of the class"
FACTS = Facts(("classes",), ("images",), "weights", "passes over forgotten rows", "arXiv 2303.11570")


@dataclass(eq=False, repr=False, kw_only=True)
class BoundaryShrink(Updater):
    """Minimise the CE of forgotten rows to the class across the nearest boundary; Chen et al., arXiv 2303.11570.

    `x' = x + eps sign(dCE/dx)` under the original. The new label is the retained class to which the original gives the
    largest probability at x'. The published code allows every class: where the attack fails, the label is the row's
    own class, which is then trained again.

    eps    as a share of the pixel range
    soft   use the original's probabilities of x' over the retained classes as targets, not their largest [derived]

    An epoch is a pass over the forgotten rows; retained rows are not used and `retain_share` has no effect. Whole
    classes only. Batch norm: running statistics. Other arguments as in Updater.
    """

    facts: ClassVar[Facts] = FACTS
    eps: float = 0.1
    soft: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps < 0:
            raise ValueError(f"eps must not be negative, got {self.eps}")

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch over forgotten rows. Raises DataError unless whole classes are forgotten."""
        need_whole_classes(run, WHY)
        keep = has_retained_rows(run)

        def loss(rows: Index) -> Terms:
            beyond = across(run, rows, self.eps).masked_fill(~keep, -torch.inf)
            logits = run.logits(rows, frozen_norm=True)
            if self.soft:
                return {"forget": kl(beyond.softmax(1), logits)}
            return {"forget": cross_entropy(logits, beyond.argmax(1))}

        return [Phase(epoch, "forgotten", single(run.forgotten(epoch)), loss) for epoch in range(self.epochs)]


@dataclass(eq=False, repr=False, kw_only=True)
class BoundaryExpand(Updater):
    """Train forgotten rows to a class C + 1, which is then removed from the head; Chen et al., arXiv 2303.11570.

    An epoch is a pass over the forgotten rows; retained rows are not used and `retain_share` has no effect. The new row
    of the head is drawn with `seed` like that of a fresh layer. Whole classes only. Batch norm: running statistics.
    """

    facts: ClassVar[Facts] = FACTS

    def _descend(self, run: Run) -> list[dict[str, float]]:
        need_whole_classes(run, WHY)
        head = run.student.head
        run.student.head = grown(head, self.seed)
        history = run.train(self.phases(run))
        shrunk = bare_linear(head.in_features, head.out_features, run.device)
        with torch.no_grad():
            shrunk.weight.copy_(run.student.head.weight[:-1])
            shrunk.bias.copy_(run.student.head.bias[:-1])
        run.student.head = shrunk
        return history

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch over forgotten rows, whose target is the added class."""

        def loss(rows: Index) -> Terms:
            logits = run.logits(rows, frozen_norm=True)
            return {"forget": cross_entropy(logits, torch.full_like(run.y(rows), logits.shape[1] - 1))}

        return [Phase(epoch, "forgotten", single(run.forgotten(epoch)), loss) for epoch in range(self.epochs)]


def across(run: Run, rows: Index, eps: float) -> Tensor:
    """Return the original's logits `(b, C)` of the rows after one step along the sign of the loss gradient."""
    preprocess = need_pixels(run)
    x = preprocess(run.inputs[rows]).to(run.device).requires_grad_()
    loss = cross_entropy(run.original(x).float(), run.y(rows), reduction="sum")
    [slope] = torch.autograd.grad(loss, [x])
    # The network's input is normalised: pixels in [0, 1] are divided by the standard deviation, and so is the step.
    step = eps / x.new_tensor(preprocess.std).view(1, -1, 1, 1)
    with torch.no_grad():
        out: Tensor = run.original(x + step * slope.sign())
    return out.float()


def grown(head: nn.Linear, seed: int) -> nn.Linear:
    """Return a copy of `head` with one additional output, the last."""
    new = bare_linear(head.in_features, head.out_features + 1, head.weight.device)
    generator = torch.Generator().manual_seed(seed)
    row = torch.empty(head.in_features).uniform_(-1, 1, generator=generator) / math.sqrt(head.in_features)
    with torch.no_grad():
        new.weight.copy_(torch.cat([head.weight, row.to(head.weight)[None]]))
        new.bias.copy_(torch.cat([head.bias, head.bias.new_zeros(1)]))
    return new


def bare_linear(inputs: int, outputs: int, device: torch.device) -> nn.Linear:
    """Return a linear layer without initial values, because drawing them would advance the global generator."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, device=device)  # type: ignore[no-untyped-call]
    assert isinstance(layer, nn.Linear)
    return layer
