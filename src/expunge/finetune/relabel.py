"""Random labels for forgotten rows, training all weights or those with the largest gradient on them (SalUn)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from expunge.core.facts import Facts
from expunge.finetune.loop import RELABEL, Index, Phase, Run, Terms, Updater, single
from expunge.system.errors import DataError


@dataclass(eq=False, repr=False, kw_only=True)
class RandomLabels(Updater):
    """Minimise cross-entropy on retained rows with their labels and forgotten rows with random ones, shuffled together.

    Each forgotten row gets one label, drawn once and uniformly from the retained classes other than its own (Graves et
    al., arXiv 2010.10981). An epoch is a pass over both. Arguments as in Updater.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("inputs", "retained rows"), "weights", "passes over retained rows", "arXiv 2010.10981"
    )
    for_rows: ClassVar[Mapping[str, Any]] = {"factor": 0.2, "retain_share": 1.0}
    retain_share: float = 0.3

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch over all rows, in which the forgotten ones have random labels."""
        labels = run.labels.copy()
        labels[run.forget] = random_labels(run)

        def loss(rows: Index) -> Terms:
            return {"loss": cross_entropy(run.logits(rows), torch.from_numpy(labels[rows]).to(run.device))}

        return [Phase(epoch, "all rows", single(run.mixed(epoch)), loss) for epoch in range(self.epochs)]


@dataclass(eq=False, repr=False, kw_only=True)
class SalUn(RandomLabels):
    """Random labels, training only the weights with the largest gradient on forgotten rows; arXiv 2310.12508.

    density   share of the weights, over all layers together, that are trained: those with the largest |dL/dw|, L the
              mean cross-entropy of forgotten rows under the original in eval mode (the paper's sparsity of 50 %)

    The other weights do not change, not even by weight decay or momentum. Batch norm's running statistics are not
    weights and are updated.

    The released code (OPTML-Group/Unlearn-Saliency, Classification/) differs. While it sums gradients for the mask, it
    also takes ascent steps, batch by batch. It draws labels from all classes, the row's own and the forgotten ones
    included, and anew in every epoch. On CIFAR-10 it passes over forgotten rows first and retained ones second; here
    both are shuffled together, as in its code for CIFAR-100. Its earlier versions masked only gradients, so that decay
    and momentum changed masked weights.

    Other arguments as in Updater. Also fitted: `mask_`, name -> boolean tensor.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("inputs", "retained rows"), "weights", "passes over retained rows", "arXiv 2310.12508"
    )
    density: float = 0.5
    mask_: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1], got {self.density}")

    def _descend(self, run: Run) -> list[dict[str, float]]:
        self.mask_ = saliency_mask(run, self.density)
        return run.train(self.phases(run), movable=self.mask_)


def random_labels(run: Run) -> Index:
    """Return for each forgotten row a random retained class other than its own, `(n_f,)` int64."""
    own, classes = run.labels[run.forget], run.retained_classes
    if not np.all([np.any(classes != c) for c in np.unique(own)]):
        raise DataError("random labels need retained rows of a class other than the forgotten ones")
    # Draw from one class fewer, and shift draws at or above the position of the row's own class by one.
    place = np.searchsorted(classes, own)
    present = np.isin(own, classes)
    draw = run.rng(RELABEL).integers(0, len(classes) - present)
    return classes[draw + (present & (draw >= place))]


def saliency_mask(run: Run, density: float) -> dict[str, Tensor]:
    """Return a mask per weight, True for the share `density` with the largest absolute gradient on forgotten rows."""
    model = run.student.eval()
    model.zero_grad(set_to_none=True)
    for rows in run.split(run.forget):
        with run.autocast():
            logits = model(run.inputs[rows])
        loss = cross_entropy(logits.float(), run.y(rows), reduction="sum") / len(run.forget)
        loss.backward()  # type: ignore[no-untyped-call]
    sizes = {name: torch.zeros_like(p) if p.grad is None else p.grad.abs() for name, p in model.named_parameters()}
    flat = torch.cat([s.reshape(-1) for s in sizes.values()])
    chosen = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    chosen[flat.topk(max(1, round(density * len(flat)))).indices] = True
    parts = torch.split(chosen, [s.numel() for s in sizes.values()])
    return {name: part.view(s.shape) for (name, s), part in zip(sizes.items(), parts, strict=True)}
