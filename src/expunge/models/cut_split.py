"""The two halves of a backbone: its forward, the modules below a cut replaced. `models/cuts.py` makes and checks."""

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

EXAMPLES = ((2, 5), (3, 7))  # inputs and, for texts, tokens: two passes tell which sizes follow which


@dataclass(frozen=True)
class Traces:
    """Two recorded passes of a backbone, over the EXAMPLES, and the second example's input and features."""

    first: Trace
    second: Trace
    x: Tensor
    z: Tensor


class Reached(Exception):
    """Ends a forward pass at the cut. `out` is the cut module's output."""

    def __init__(self, out: Any) -> None:
        super().__init__()
        self.out = out


class Replacement(nn.Module):
    """What is asked of it and is not its own, such as a type or a stride, is the replaced module's."""

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        self.__dict__["replaced"] = replaced  # not a child: its weights are not listed here
        self._forward_hooks = replaced._forward_hooks  # whoever reads the module's output reads it here too

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["replaced"], name)


class StandIn(Replacement):
    """Gives NaN in the shapes that the module it replaces gives for `n` inputs of `t` tokens."""

    def __init__(self, replaced: nn.Module, first: Any, second: Any) -> None:
        super().__init__(replaced)
        self.first, self.second = first, second
        self.sizes = EXAMPLES[1]
        self.device = torch.device("cpu")

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        leaves, spec = pytree.tree_flatten(self.first)
        others = pytree.tree_leaves(self.second)
        return pytree.tree_unflatten([self._leaf(a, b) for a, b in zip(leaves, others, strict=True)], spec)

    def _leaf(self, a: Any, b: Any) -> Any:
        if not isinstance(a, Tensor):
            return a
        shape = [_size(p, q, *self.sizes) for p, q in zip(a.shape, b.shape, strict=True)]
        value = float("nan") if a.is_floating_point() else 0
        return torch.full((), value, dtype=a.dtype, device=self.device).expand(shape)


class Source(Replacement):
    """Stands where the cut is: gives `value` in the place of the tensor that the module gave."""

    def __init__(self, replaced: nn.Module, out: Any) -> None:
        super().__init__(replaced)
        self.out = out
        self.value: Tensor | None = None

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda _: self.value, self.out)


@dataclass(frozen=True)
class Above:
    """What lies above a cut, the head apart: names and modules of the backbone, and names of its parameters."""

    modules: Mapping[str, nn.Module]
    parameters: tuple[str, ...]


class Split:
    """The backbone of a classifier in eval mode, cut behind the module `name`. `split_at_cut` makes and checks it."""

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
        self.source = Source(self.core.get_submodule(self.inner), self.cut.out)
        self.tail = self._clone(self.core, "")

    def shape(self, tokens: int | None = None) -> tuple[int, ...]:
        """Shape of one input's activations; of a text's at `tokens` tokens."""
        one, two = (tensor_of(t.calls[self.inner][0].out) for t in (self.traces.first, self.traces.second))
        shape = zip(one.shape, two.shape, strict=True)
        return tuple(_size(p, q, 1, tokens or EXAMPLES[1][1]) for p, q in shape)[1:]

    def below(self, x: Tensor) -> Tensor:
        """Output of the cut module for preprocessed `x`; what lies above does not run."""

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
        """Features `(n, d)` from what `below` gave; for texts with `inside (n, t)`, the positions within each text."""
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
        """The modules that run above, and the parameters that the features depend on when the activations are given."""
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
        """Set train or eval mode of the modules above the cut and of the head; those below keep theirs."""
        self.tail.train(mode)
        for module in self.kept_below:
            module.eval()
        self.classifier.head.train(mode)

    def _clone(self, module: nn.Module, path: str) -> nn.Module:
        """`module` with its children below the cut replaced; parameters, buffers and all other children are shared."""
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
                raise ConfigError(f"{path} runs below and above {self.name}, with the same weights")
            return child
        if not any(c.fed for c in calls) or len(calls) > 1:
            # Runs on stand-ins' NaN: what it gives does not come from the input, or it has to be told call from call.
            self.kept_below.append(child)
            return child
        return self._stand_in(child, path)

    @property
    def _run(self) -> Mapping[str, list[Call]]:
        return self.traces.first.calls

    def _stand_in(self, child: nn.Module, path: str) -> StandIn:
        out = [t.calls[path][0].out for t in (self.traces.first, self.traces.second)]
        stand_in = StandIn(child, *out)
        stand_in()  # sizes that follow neither inputs nor tokens are refused here
        self.stand_ins.append(stand_in)
        return stand_in


def core_of(classifier: Classifier) -> tuple[nn.Module, str]:
    """What is cut, and the prefix of its wrappers that names of modules come without."""
    core = classifier.backbone.encoder if isinstance(classifier.backbone, ByLength) else classifier.backbone
    prefix, inner = "", core
    while isinstance(inner, Layers | LogitsOf | SentenceEncoder):
        prefix, inner = f"{prefix}model.", inner.model
    assert isinstance(core, nn.Module)
    return core, prefix


def tensor_of(out: Any) -> Tensor:
    found: Tensor = next(leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor))
    return found


def _size(p: int, q: int, n: int, t: int) -> int:
    """A size that was `p` and `q` in the two EXAMPLES, for `n` inputs of `t` tokens: the same, or a multiple."""
    (n1, t1), (n2, t2) = EXAMPLES
    for one, two, now in ((1, 1, 1), (n1, n2, n), (t1, t2, t), (n1 * t1, n2 * t2, n * t)):
        if p * two == q * one and p % one == 0:
            return p // one * now
    raise ValueError(f"a size of {p} for {n1} inputs and {q} for {n2}")
