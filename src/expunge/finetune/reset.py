"""Reset weights, then train on retained rows to repair the accuracy: Scissorhands and retention-based masking.

Scissorhands resets weights that are important for forgotten rows, retention-based masking those that are unimportant
for retained rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from expunge.core.facts import Facts
from expunge.finetune.loop import RELABEL, Index, Phase, Run, Terms, Updater
from expunge.finetune.retained import retained_phases
from expunge.finetune.ssd import per_sample_fisher
from expunge.finetune.steps import Factors
from expunge.system.errors import ConfigError

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
MARGIN, DAMP = 0.5, 1e-3  # constants of the published quadratic program, see `surgery`
Gradients = dict[str, Tensor]


@dataclass(eq=False, repr=False, kw_only=True)
class Scissorhands(Updater):
    """Redraw the weights most important for forgotten rows, then repair; Wu and Harandi, arXiv 2401.06187.

    1. The importance is |w dL/dw|, L the mean cross-entropy of forgotten rows under the original in eval mode.
    2. The share 1 - `sparsity` of the weights of `layers`, taken together, with the largest importance is redrawn with
       the initialisation of a fresh layer (Kaiming-uniform, a = sqrt 5); biases among them are set to 0.
    3. Descent on CE(retained) - lam CE(forgotten). Where a step would lower the forgotten loss, judged by its gradient
       at the start of the epoch, the gradient is changed by `surgery`.

    sparsity   share of the weights that are kept; .97 as published for random rows
    lam        0 repairs on retained rows alone, which is FineTune from the result of step 2; published .01 to 1
    cap        nats; a forgotten row whose loss has reached it no longer contributes. With None, as published, the
               forgotten loss is unbounded
    layers     names of modules whose convolutions and linear layers may be reset; empty takes all of the network's
               but the first third, whose features are the most general [derived; published: layer3, layer4, fc]

    An epoch is a pass over the retained rows. Batch norm is never reset; forgotten batches use running statistics.
    Other arguments as in Updater. Also fitted: `reset_`, name -> boolean tensor of the redrawn weights. Raises
    ConfigError for a layer that the network does not have.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("inputs", "retained rows"), "weights", "passes over retained rows", "arXiv 2401.06187"
    )
    sparsity: float = 0.97
    lam: float = 0.0
    cap: float | None = 6.0
    layers: tuple[str, ...] = ()
    epochs: int = 2
    reset_: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sparsity <= 1 or self.lam < 0:
            raise ValueError(
                f"sparsity must be in [0, 1] and lam must not be negative, got {self.sparsity} and {self.lam}"
            )
        self.layers = tuple(self.layers)

    def _descend(self, run: Run) -> list[dict[str, float]]:
        parameters = resettable(run, self.layers)
        gradients = loss_gradients(run, run.forget)
        importance = {name: (p.detach() * gradients[name]).abs() for name, p in parameters.items()}
        self.reset_ = largest(importance, 1 - self.sparsity)
        redraw(run, self.reset_)
        if self.lam == 0:
            return run.train(retained_phases(run, self.epochs))
        guide = Guide(run, self.cap)
        return run.train(self._pairs(run, guide), adjust=guide.turn)

    def _pairs(self, run: Run, guide: Guide) -> list[Phase]:
        def loss(epoch: int, retained: Index, forgotten: Index) -> Terms:
            guide.start(epoch, forgotten)
            keep = cross_entropy(run.logits(retained), run.y(retained))
            lose = forgotten_loss(run, forgotten, self.cap)
            return {"retain": keep, "forget": -self.lam * lose}

        def of(epoch: int) -> Phase:
            return Phase(epoch, "retained and forgotten", run.pairs(epoch), lambda r, f: loss(epoch, r, f))

        return [of(epoch) for epoch in range(self.epochs)]


@dataclass(eq=False, repr=False, kw_only=True)
class RetentionMask(Updater):
    """Reset the weights least important for retained rows, then repair; after Ding et al., arXiv 2410.03833.

    The paper's theory is for linear regression; this form for deep networks is a reconstruction. The importance is
    |w| sqrt(F), F the per-sample Fisher diagonal on retained rows. It is used in place of the mean gradient, which
    vanishes at the optimum.

    keep          share of each layer's weights that are kept; one threshold for all layers would reset some completely
    redraw        False sets the other weights to 0, as in the theory; True redraws them
    layers        as in Scissorhands
    fisher_rows   number of retained rows whose gradients are taken, drawn with `seed`

    An epoch is a pass over the retained rows. Compare the result with fine-tune of the same epochs, because much of the
    effect comes from the repair. Batch norm is never reset. Other arguments as in Updater. Also fitted: `reset_`.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"),
        ("inputs", "retained rows"),
        "weights",
        "passes over retained rows",
        "arXiv 2410.03833, reconstruction",
    )
    keep: float = 0.9
    redraw: bool = True
    layers: tuple[str, ...] = ()
    fisher_rows: int = 2048
    epochs: int = 2
    factors: ClassVar[Factors] = Factors(sgd=0.5)
    reset_: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1 or self.fisher_rows < 1:
            raise ValueError(
                f"keep must be in (0, 1] and fisher_rows at least 1, got {self.keep} and {self.fisher_rows}"
            )
        self.layers = tuple(self.layers)

    def _descend(self, run: Run) -> list[dict[str, float]]:
        parameters = resettable(run, self.layers)
        rows = run.rng(RELABEL).permutation(run.retain)[: self.fisher_rows]
        fisher = per_sample_fisher(run.student.eval(), run.inputs, run.labels, rows)
        importance = {name: p.detach().abs() * fisher[name].sqrt() for name, p in parameters.items()}
        self.reset_ = {}
        for name, value in importance.items():
            self.reset_ |= largest({name: -value}, 1 - self.keep)
        if self.redraw:
            redraw(run, self.reset_)
        else:
            zero(run, self.reset_)
        return run.train(retained_phases(run, self.epochs))


class Guide:
    """Keep the repair from relearning forgotten rows, by the gradient of -CE(forgotten) at the start of each epoch."""

    def __init__(self, run: Run, cap: float | None) -> None:
        self.run = run
        self.cap = cap
        self.epoch = -1
        self.memory: Gradients = {}

    def start(self, epoch: int, rows: Index) -> None:
        """At the first batch of an epoch, compute the gradient of -CE on the forgotten `rows`."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        parameters = dict(self.run.student.named_parameters())
        lose = forgotten_loss(self.run, rows, self.cap)
        found = torch.autograd.grad(-lose, list(parameters.values()), allow_unused=True)
        self.memory = {name: g for name, g in zip(parameters, found, strict=True) if g is not None}

    def turn(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add that gradient to those of `parameters`, in place, as much of it as `surgery` says."""
        names = [name for name in self.memory if parameters[name].grad is not None]
        gradient = {name: parameters[name].grad for name in names}
        v = surgery(gradient, {name: self.memory[name] for name in names})  # type: ignore[arg-type]
        for name in names:
            gradient[name].add_(self.memory[name], alpha=v)  # type: ignore[union-attr]


def surgery(g: Gradients, memory: Gradients, margin: float = MARGIN, damp: float = DAMP) -> float:
    """Return v for `g + v memory`: 0 where <g, memory> >= 0, else `max(margin, -<g, memory> / (||memory||^2 + damp))`.

    This is the closed form of the published quadratic program with one memory, min_v ||g + v memory||^2 + damp v^2 with
    v >= margin [derived].
    """
    inner = float(torch.stack([(g[name] * memory[name]).sum() for name in memory]).sum())
    if inner >= 0:
        return 0.0
    square = float(torch.stack([m.square().sum() for m in memory.values()]).sum())
    return max(margin, -inner / (square + damp))


def forgotten_loss(run: Run, rows: Index, cap: float | None) -> Tensor:
    """Return the mean cross-entropy of forgotten rows, each clamped to `cap`; batch norm uses running statistics."""
    losses = cross_entropy(run.logits(rows, frozen_norm=True), run.y(rows), reduction="none")
    return losses.mean() if cap is None else losses.clamp(max=cap).mean()


def resettable(run: Run, layers: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Return weights and biases of the student's convolutions and linear layers within `layers`, by name."""
    modules = [(name, m) for name, m in run.student.named_modules() if isinstance(m, WEIGHTED)]
    if layers:
        names = [name for name, _ in run.student.named_modules()]
        # Both `stage3` and `backbone.stage3` are accepted.
        whole = {layer: layer if layer in names else f"backbone.{layer}" for layer in layers}
        if unknown := [layer for layer, name in whole.items() if name not in names]:
            raise ConfigError(f"{type(run.options).__name__}: {run.original.card.name} has no layer {unknown[0]!r}")
        chosen = tuple(whole.values())
        modules = [(name, m) for name, m in modules if any(name == c or name.startswith(f"{c}.") for c in chosen)]
    else:
        modules = modules[len(modules) // 3 :]
    return {f"{name}.{kind}": p for name, m in modules for kind, p in m.named_parameters(recurse=False)}


def loss_gradients(run: Run, rows: Index) -> Gradients:
    """Return the gradient of the mean cross-entropy of `rows` under the student in eval mode, by name."""
    model = run.student.eval()
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for part in run.split(rows):
        loss = cross_entropy(model(run.inputs[part]).float(), run.y(part), reduction="sum") / len(rows)
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, g in zip(parameters, found, strict=True):
            if g is not None:
                total[name] += g
    return total


def largest(values: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return masks by name, True for the floor(share N) largest of the N entries of all `values` together."""
    flat = torch.cat([v.reshape(-1) for v in values.values()])
    chosen = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    # The small constant makes floor robust to rounding: 1 - .9 is slightly below .1 in floating point.
    chosen[flat.topk(math.floor(share * len(flat) + 1e-9)).indices] = True
    parts = torch.split(chosen, [v.numel() for v in values.values()])
    return {name: part.view(v.shape) for (name, v), part in zip(values.items(), parts, strict=True)}


@torch.no_grad()
def redraw(run: Run, reset: Mapping[str, Tensor]) -> None:
    """Redraw the chosen weights from U(-1, 1) / sqrt(fan in), and set the chosen biases to 0."""
    generator = torch.Generator().manual_seed(run.options.seed)
    for name, parameter in run.student.named_parameters():
        if name not in reset:
            continue
        fresh = torch.zeros(parameter.shape)
        if parameter.ndim > 1:
            fresh.uniform_(-1, 1, generator=generator).div_(math.sqrt(parameter[0].numel()))
        parameter.copy_(torch.where(reset[name], fresh.to(parameter), parameter))


@torch.no_grad()
def zero(run: Run, reset: Mapping[str, Tensor]) -> None:
    """Set the chosen weights to 0."""
    for name, parameter in run.student.named_parameters():
        if name in reset:
            parameter.masked_fill_(reset[name], 0.0)
