"""Residual feature alignment: low-rank residuals, trained to be small on retained rows and to move forgotten ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.facts import Facts
from expunge.finetune.kinds import forgotten_classes, need_whole_classes
from expunge.finetune.loop import RELABEL, Index, Phase, Run, Terms, Updater
from expunge.finetune.steps import Factors
from expunge.finetune.unseen import need_unseen
from expunge.system.errors import ConfigError

SAMPLE = 2000  # number of retained rows from which class means are computed


@dataclass(eq=False, repr=False, kw_only=True)
class ResidualAlignment(Updater):
    """Minimise `mean_r sum_l ||D_l(x)||^2 + weight mean_f ||z(x) - target||^2`, D_l the residual of layer l.

    After Qin et al., arXiv 2411.08443, whose formulas were not published: a reconstruction. Each layer within `layers`
    gets `B A x` added to `W x`, with A Kaiming-uniform and B initially 0, so that the initial network equals the
    original bit for bit. After training the layer's weight is `W + B A`. For convolutions, A maps the window to `rank`
    channels and B is a 1 x 1 convolution. ||D_l||^2 is a sum over channels and a mean over positions. Both terms are
    divided by the mean ||z||^2 of retained rows, so that lr does not depend on the scale of features [derived].

    target   whole classes: the mean feature of the retained class whose mean is nearest to that of the forgotten class.
             Rows: the mean feature of the unseen rows of the class, so `fit` needs `unseen_rows`
    rank     of every residual
    weight   of the forgotten term
    layers   names of modules; empty takes the last third of the backbone's convolutions and linear layers

    Only the residuals are trained, and batch norm's statistics do not change. An epoch is a pass over the longer side.
    Weight decay applies to the residuals. Also fitted: `added_`, the number of trained weights.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"),
        ("inputs", "retained rows", "unseen rows"),
        "weights",
        "passes over retained rows",
        "arXiv 2411.08443, reconstruction",
    )
    rank: int = 8
    weight: float = 0.5
    layers: tuple[str, ...] = ()
    epochs: int = 2
    factors: ClassVar[Factors] = Factors(sgd=2)
    weight_decay: float = 0.0
    added_: int = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1 or self.weight <= 0:
            raise ValueError(f"rank must be at least 1 and weight above 0, got {self.rank} and {self.weight}")
        self.layers = tuple(self.layers)

    def _descend(self, run: Run) -> list[dict[str, float]]:
        targets = feature_targets(run)
        adapters = attach(run, self.rank, self.layers)
        parameters = {
            f"{name}.{kind}": p for name, a in adapters.items() for kind, p in (("down", a.down), ("up", a.up))
        }
        self.added_ = sum(p.numel() for p in parameters.values())
        history = run.train(self._phases(run, adapters, targets, feature_energy(run)), parameters)
        for name, adapter in adapters.items():
            replace_module(run.student, name, adapter.merged())
        return history

    def _phases(self, run: Run, adapters: dict[str, Adapter], targets: dict[int, Tensor], scale: float) -> list[Phase]:
        def loss(retained: Index, forgotten: Index) -> Terms:
            for adapter in adapters.values():
                adapter.residuals.clear()
            run.features(retained, frozen_norm=True)
            residual = torch.stack([adapter.energy() for adapter in adapters.values()]).sum()
            wanted = torch.stack([targets[int(c)] for c in run.labels[forgotten]])
            away = (run.features(forgotten, frozen_norm=True) - wanted).square().sum(1).mean()
            return {"residual": residual / scale, "forget": self.weight * away / scale}

        return [Phase(epoch, "retained and forgotten", run.pairs(epoch), loss) for epoch in range(self.epochs)]


class Adapter(nn.Module):
    """A layer and its residual. `residuals` holds those of all calls until it is cleared, for the loss."""

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        window = base.weight.shape[1:]
        bound = 1 / math.sqrt(window.numel())
        down = torch.empty(rank, *window).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(base.weight))
        self.up = nn.Parameter(base.weight.new_zeros(base.weight.shape[0], rank))
        self.residuals: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output plus the residual, which is added to `residuals`."""
        out: Tensor = self.base(x)
        if isinstance(self.base, nn.Conv2d):
            low = self.base._conv_forward(x, self.down, None)
            residual = nn.functional.conv2d(low, self.up[:, :, None, None])
        else:
            residual = nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        self.residuals.append(residual)
        return out + residual

    def energy(self) -> Tensor:
        """Return the mean over rows and positions of the squared length of the residuals of all calls, one or more.

        An encoder of texts makes several calls for a batch, one for every group of texts of similar length.
        """
        channels = 1 if isinstance(self.base, nn.Conv2d) else -1
        squares = [residual.float().square().sum(channels) for residual in self.residuals]
        total = torch.stack([square.reshape(len(square), -1).mean(1).sum() for square in squares]).sum()
        return total / sum(len(square) for square in squares)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return the layer with the weight `W + B A`."""
        self.base.weight += torch.einsum("or,r...->o...", self.up, self.down)
        return self.base


def attach(run: Run, rank: int, layers: tuple[str, ...]) -> dict[str, Adapter]:
    """Insert adapters into the student and return them by the names of the layers.

    Raises ConfigError where there is no layer that can have one.
    """
    fits = [
        name
        for name, m in run.student.named_modules()
        if name.startswith("backbone.") and (isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1))
    ]
    chosen = fits[-max(1, len(fits) // 3) :] if fits else []
    if layers:
        whole = [layer if layer.startswith("backbone.") else f"backbone.{layer}" for layer in layers]
        chosen = [name for name in fits if any(name == w or name.startswith(f"{w}.") for w in whole)]
    if not chosen:
        raise ConfigError(
            f"ResidualAlignment: {run.original.card.name} has no linear layer or ungrouped convolution "
            f"{'within ' + ', '.join(layers) if layers else 'in its backbone'}"
        )
    generator = torch.Generator().manual_seed(run.options.seed)
    adapters = {}
    for name in chosen:
        base = run.student.get_submodule(name)
        assert isinstance(base, nn.Linear | nn.Conv2d)
        adapters[name] = Adapter(base, rank, generator).to(run.device)
        replace_module(run.student, name, adapters[name])
    return adapters


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule `name` of `model`."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


@torch.no_grad()
def feature_targets(run: Run) -> dict[int, Tensor]:
    """Return the target features `(d,)` of forgotten rows, by class."""
    classes = np.unique(run.labels[run.forget])
    if not len(forgotten_classes(run)):
        need_unseen(run)
        return {int(c): mean_feature(run, run.unseen[run.labels[run.unseen] == c]) for c in classes}
    need_whole_classes(run, "the targets of whole classes and of single rows differ; ask for them one after another")
    sample = run.rng(RELABEL).permutation(run.retain)[:SAMPLE]
    means = [mean_feature(run, sample[run.labels[sample] == c]) for c in np.unique(run.labels[sample])]
    table = torch.stack(means)
    targets = {}
    for c in classes:
        own = mean_feature(run, run.forget[run.labels[run.forget] == c])
        targets[int(c)] = table[int((table - own).square().sum(1).argmin())]
    return targets


@torch.no_grad()
def feature_energy(run: Run) -> float:
    """Return the mean ||z||^2 of at most SAMPLE retained rows under the original."""
    sample = run.rng(RELABEL).permutation(run.retain)[:SAMPLE]
    z = torch.cat([run.original.features(run.inputs[part]).float() for part in run.split(sample)])
    return float(z.square().sum(1).mean())


def mean_feature(run: Run, rows: Index) -> Tensor:
    """Return the mean feature `(d,)` of rows under the original."""
    z = torch.cat([run.original.features(run.inputs[part]).float() for part in run.split(rows)])
    return z.mean(0)
