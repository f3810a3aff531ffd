"""The costs of the cuts of a classifier: disk space per input, and operations and parameters above the cut."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from expunge.models.classifier import Classifier
from expunge.models.cut_split import EXAMPLES, CutSplit
from expunge.models.cuts import split_at_cut, splits, traces_of
from expunge.system.errors import ConfigError

BYTES = 2  # per number, float16
TOKENS = 64  # the length of a text for which sizes are given


@dataclass(frozen=True)
class CutCost:
    """The cost of one cut.

    `shape` is that of one input's activations (for texts, at TOKENS tokens), `kb` their size as float16 in kilobytes
    (1e3 bytes).

    `share_above` is the share in [0, 1] of the operations of one forward pass that lie above the cut;
    torch.utils.flop_counter counts matrix products, convolutions and attention. `parameters_above` is the number of
    scalar parameters above the cut, with the head.
    """

    name: str
    shape: tuple[int, ...]
    kb: float
    share_above: float
    parameters_above: int

    def gb(self, rows: int) -> float:
        """Gigabytes (1e9 bytes) on disk for `rows` inputs."""
        return self.kb * rows / 1e6


def cut_costs(classifier: Classifier) -> list[CutCost]:
    """Return the costs of all valid cuts of `classifier` (in eval mode), the deepest (nearest the input) first."""
    traces = traces_of(classifier)
    found = splits(classifier, traces)
    return [_cost(split, _flops(split, whole=True)) for split in found]


def share_above(classifier: Classifier, cut: str) -> float:
    """Return the share of the operations of one forward pass that lie above `cut`, in (0, 1].

    Raises ConfigError for an invalid cut.
    """
    split = split_at_cut(classifier, cut)
    return _cost(split, _flops(split, whole=True)).share_above


def choose_cut(costs: list[CutCost], rows: int, max_gb: float, max_cost: float) -> CutCost:
    """Return the first of `costs` (the deepest cut) that is within both limits.

    It needs at most `max_gb` GB for `rows` inputs, and its `share_above` is at most `max_cost`. Raises ConfigError if
    there is none; the message names the nearest one.
    """
    for cost in costs:
        if cost.gb(rows) <= max_gb and cost.share_above <= max_cost:
            return cost
    if not costs:
        raise ConfigError("activations.cuts is auto, but this backbone has no usable cut; set activations.cuts: []")
    near = min(costs, key=lambda c: max(c.gb(rows) / max_gb, c.share_above / max_cost))
    raise ConfigError(
        f"activations.cuts: auto found no cut that needs at most {max_gb:g} GB for {rows:,} rows and has at most "
        f"{max_cost:.0%} of the operations above it; the closest is {near.name} ({near.gb(rows):.2f} GB, "
        f"{near.share_above:.0%}). Raise activations.max_gb or activations.max_cost"
    )


def _cost(split: CutSplit, whole: int) -> CutCost:
    shape = split.shape(TOKENS if split.texts else None)
    parameters = dict(split.core.named_parameters())
    above = sum(parameters[k].numel() for k in split.lying_above.parameters)
    head = sum(p.numel() for p in split.classifier.head.parameters())
    share = _flops(split, whole=False) / whole if whole else 1.0
    return CutCost(split.name, shape, math.prod(shape) * BYTES / 1e3, share, above + head)


@torch.no_grad()
def _flops(split: CutSplit, whole: bool) -> int:
    x = split.traces.x[: EXAMPLES[0][0]]
    a = split.below(x)
    counter = FlopCounterMode(display=False)
    with counter:
        split.classifier.head(split.core(x) if whole else split.above(a, x >= 0 if split.texts else None))
    return int(counter.get_total_flops())
