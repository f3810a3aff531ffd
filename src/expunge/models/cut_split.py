"""Run the layers below or above a cut of a backbone.

`split_at_cut` in `models/cuts.py` creates and checks a CutSplit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from expunge.models.classifier import Classifier
from expunge.models.cut_trace import Call, Trace, leaves_behind
from expunge.models.heads import LogitsOf
from expunge.models.layers import Layers
from expunge.models.preprocess import Preprocess
from expunge.models.sentence import ByLength, SentenceEncoder
from expunge.system.errors import ConfigError

# (inputs, tokens of texts) of two passes, to infer how the sizes of activations depend on both.
EXAMPLES = ((2, 5), (3, 7))


@dataclass(frozen=True)
class Traces:
    """The traces of two forward passes over the EXAMPLES, and the input `x` and the features `z` of the second."""

    first: Trace
    second: Trace
    x: Tensor
    z: Tensor


class Reached(Exception):
    """Raised to end a forward pass at the cut; `out` is the output of the cut module."""

    def __init__(self, out: Any) -> None:
        super().__init__()
        self.out = out


class Replacement(nn.Module):
    """Base class of modules that replace another one; unknown attributes, such as a stride, are those of `replaced`."""

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        self.__dict__["replaced"] = replaced  # not a child module, so its parameters are not listed
        self._forward_hooks = replaced._forward_hooks  # so that hooks of the replaced module see this output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["replaced"], name)


class StandIn(Replacement):
    """Replaces a module below the cut: returns NaN in the shapes of its output for `n` inputs of `t` tokens."""

    def __init__(self, replaced: nn.Module, first: Any, second: Any) -> None:
        super().__init__(replaced)
        self.first, self.second = first, second
        self.sizes = EXAMPLES[1]
        self.device = torch.device("cpu")

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        """Return the recorded output in the shapes for `sizes`: NaN for floating tensors, 0 for others."""
        leaves, spec = pytree.tree_flatten(self.first)
        others = pytree.tree_leaves(self.second)
        return pytree.tree_unflatten([self._leaf(a, b) for a, b in zip(leaves, others, strict=True)], spec)

    def _leaf(self, a: Any, b: Any) -> Any:
        if not isinstance(a, Tensor):
            return a
        shape = [_size(p, q, *self.sizes) for p, q in zip(a.shape, b.shape, strict=True)]
        value = float("nan") if a.is_floating_point() else 0
        return torch.full((), value, dtype=a.dtype, device=self.device).expand(shape)


class CutSource(Replacement):
    """Replaces the cut module: returns its output structure with `value` in the place of the tensor."""

    def __init__(self, replaced: nn.Module, out: Any) -> None:
        super().__init__(replaced)
        self.out = out
        self.value: Tensor | None = None

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        """Return the recorded output with `value` as its tensor; the arguments have no effect."""
        return pytree.tree_map_only(Tensor, lambda _: self.value, self.out)


@dataclass(frozen=True)
class Above:
    """The part of a backbone above a cut, without the head: its modules by name, and the names of its parameters."""

    modules: Mapping[str, nn.Module]
    parameters: tuple[str, ...]


class CutSplit:
    """The backbone of a classifier in eval mode, cut after the module `name`. Created and checked by `split_at_cut`."""

    def __init__(self, classifier: Classifier, name: str, traces: Traces) -> None:
        self.classifier = classifier
        self.core, self.prefix = core_of(classifier)
        self.inner = self.prefix + name if self.prefix + name in traces.first.calls else name
        self.name = self.inner.removeprefix(self.prefix)
        self.texts = not isinstance(classifier.preprocess, Preprocess)
        self.traces = traces
        self.stand_ins: list[StandIn] = []
        self.kept_below: list[nn.Module] = []
        self._above: dict[str, nn.Module] = {}
        self.cut = traces.first.calls[self.inner][0]
        self.source = CutSource(self.core.get_submodule(self.inner), self.cut.out)
        self.tail = self._clone(self.core, "")

    def shape(self, tokens: int | None = None) -> tuple[int, ...]:
        """Return the shape of one input's activations; for texts, at `tokens` tokens."""
        one, two = (tensor_of(t.calls[self.inner][0].out) for t in (self.traces.first, self.traces.second))
        shape = zip(one.shape, two.shape, strict=True)
        return tuple(_size(p, q, 1, tokens or EXAMPLES[1][1]) for p, q in shape)[1:]

    def below(self, x: Tensor) -> Tensor:
        """Return the output of the cut module for preprocessed `x`; the layers above it do not run."""

        def stop(_module: nn.Module, _given: object, out: Any) -> None:
            raise Reached(out)

        handle = self.core.get_submodule(self.inner).register_forward_hook(stop)
        try:
            self.core(x)
        except Reached as reached:
            return tensor_of(reached.out)
        finally:
            handle.remove()
        raise AssertionError(f"{self.name} did not run")

    def above(self, activations: Tensor, inside: Tensor | None = None) -> Tensor:
        """Return features `(n, d)` from the result of `below`; for texts, `inside (n, t)` masks text positions."""
        n, device = activations.shape[0], activations.device
        if self.texts:
            assert inside is not None
            x = torch.where(inside, 0, -1)
            sizes = (n, inside.shape[1])
        else:
            p = self.classifier.preprocess
            assert isinstance(p, Preprocess)
            x = torch.full((), float("nan"), device=device).expand(n, p.channels, p.height, p.width)
            sizes = (n, 0)
        for stand_in in self.stand_ins:
            stand_in.sizes, stand_in.device = sizes, device
        self.source.value = activations
        try:
            z: Tensor = self.tail(x)
        finally:
            self.source.value = None
        return z

    @cached_property
    def lying_above(self) -> Above:
        """The modules that run above the cut, and the parameters on which features depend, given the activations."""
        frozen = {id(p) for m in self.kept_below for p in m.parameters()}
        x = self.traces.x[: EXAMPLES[0][0]]
        learned = [(p, p.requires_grad) for p in self.core.parameters()]
        try:
            for p, _ in learned:
                p.requires_grad_(id(p) not in frozen)
            with torch.no_grad():
                a = self.below(x)
            with torch.enable_grad():
                used = leaves_behind(self.above(a, x >= 0 if self.texts else None))
        finally:
            for p, required in learned:
                p.requires_grad_(required)
        return Above(dict(self._above), tuple(k for k, p in self.core.named_parameters() if id(p) in used))

    def train_above(self, mode: bool = True) -> None:
        """Set the modules above the cut and the head to train or eval mode; modules below the cut stay in eval mode."""
        self.tail.train(mode)
        for module in self.kept_below:
            module.eval()
        self.classifier.head.train(mode)

    def _clone(self, module: nn.Module, path: str) -> nn.Module:
        """Copy `module` with its children below the cut replaced; parameters, buffers and other children are shared."""
        new: nn.Module = module.__class__.__new__(module.__class__)
        new.__dict__ = dict(module.__dict__)
        new._modules = {k: c and self._child(c, f"{path}.{k}".lstrip(".")) for k, c in module._modules.items()}
        return new

    def _child(self, child: nn.Module, path: str) -> nn.Module:
        if path == self.inner:
            return self.source
        calls = self.traces.first.calls.get(path, [])
        if f"{self.inner}.".startswith(f"{path}.") or (not calls and any(k.startswith(f"{path}.") for k in self._run)):
            return self._clone(child, path)
        below = [c for c in calls if c.ended < self.cut.ended]
        if not below:
            if calls:
                self._above[path] = child
            return child
        if len(below) < len(calls):
            if any(True for _ in child.parameters()):
                raise ConfigError(f"{path} runs both below and above {self.name} with the same weights")
            return child
        if not any(c.fed for c in calls) or len(calls) > 1:
            # It runs on the NaN of stand-ins: its output does not depend on the input, or a stand-in would have to
            # distinguish several calls.
            self.kept_below.append(child)
            return child
        return self._stand_in(child, path)

    @property
    def _run(self) -> Mapping[str, list[Call]]:
        return self.traces.first.calls

    def _stand_in(self, child: nn.Module, path: str) -> StandIn:
        out = [t.calls[path][0].out for t in (self.traces.first, self.traces.second)]
        stand_in = StandIn(child, *out)
        stand_in()  # raises ValueError for sizes that depend on neither inputs nor tokens
        self.stand_ins.append(stand_in)
        return stand_in


def core_of(classifier: Classifier) -> tuple[nn.Module, str]:
    """Return the module to cut, and the prefix that its wrappers add to the names of modules."""
    core = classifier.backbone.encoder if isinstance(classifier.backbone, ByLength) else classifier.backbone
    prefix, inner = "", core
    while isinstance(inner, Layers | LogitsOf | SentenceEncoder):
        prefix, inner = f"{prefix}model.", inner.model
    assert isinstance(core, nn.Module)
    return core, prefix


def tensor_of(out: Any) -> Tensor:
    """Return the first tensor in the output of a module, which may be a tuple or a mapping."""
    found: Tensor = next(leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor))
    return found


def _size(p: int, q: int, n: int, t: int) -> int:
    """Infer a size for `n` inputs of `t` tokens from its values `p` and `q` in the two EXAMPLES.

    The size is constant or proportional to n, t or n t. Raises ValueError otherwise.
    """
    (n1, t1), (n2, t2) = EXAMPLES
    for one, two, now in ((1, 1, 1), (n1, n2, n), (t1, t2, t), (n1 * t1, n2 * t2, n * t)):
        if p * two == q * one and p % one == 0:
            return p // one * now
    raise ValueError(f"the sizes {p} for {n1} inputs and {q} for {n2} inputs follow no rule")
