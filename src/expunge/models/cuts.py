"""A backbone cut behind any of its modules: `below(x)` gives that module's output, `above(a)` goes on from there.

`above` runs the backbone's own forward, in which the modules below the cut are replaced by stand-ins and the cut module
by its stored output. Modules above the cut are the classifier's own objects, so training, batch norm's modes and
gradients are theirs. Stand-ins give NaN: what reaches the output past the cut makes it NaN, and the cut is refused.
docs/cuts.md says why this and not a traced graph. A text encoder's attention mask is made again from the positions that
are inside the text.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from expunge.models.classifier import Classifier
from expunge.models.cut_trace import Call, Trace, trace
from expunge.models.heads import LogitsOf
from expunge.models.layers import Layers
from expunge.models.preprocess import Preprocess
from expunge.models.sentence import ByLength, SentenceEncoder
from expunge.system.errors import ConfigError

EXAMPLES = ((2, 5), (3, 7))  # inputs and, for texts, tokens: two passes tell which sizes follow which
NEAREST = 6  # names that a refusal offers


class Reached(Exception):
    """Ends a forward pass at the cut. `out` is the cut module's output."""

    def __init__(self, out: Any) -> None:
        super().__init__()
        self.out = out


class StandIn(nn.Module):
    """Gives NaN in the shapes that the module it replaces gives for `n` inputs of `t` tokens."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
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


class Source(nn.Module):
    """Stands where the cut is: gives `value` in the place of the tensor that the module gave."""

    def __init__(self, out: Any) -> None:
        super().__init__()
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

    def __init__(self, classifier: Classifier, name: str, traces: tuple[Trace, Trace]) -> None:
        self.classifier = classifier
        self.core, self.prefix = core_of(classifier)
        self.inner = self.prefix + name if self.prefix + name in traces[0].calls else name
        self.name = self.inner.removeprefix(self.prefix)
        self.texts = not isinstance(classifier.preprocess, Preprocess)
        self.traces = traces
        self.stand_ins: list[StandIn] = []
        self.kept_below: list[nn.Module] = []
        self._above: dict[str, nn.Module] = {}
        self.cut = traces[0].calls[self.inner][0]
        self.source = Source(self.cut.out)
        self.tail = self._clone(self.core, "")

    def shape(self, tokens: int | None = None) -> tuple[int, ...]:
        """Shape of one input's activations; of a text's at `tokens` tokens."""
        one, two = (_tensor(t.calls[self.inner][0].out) for t in self.traces)
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
            return _tensor(reached.out)
        finally:
            handle.remove()
        raise AssertionError(f"{self.name} did not run")

    def above(self, activations: Tensor, inside: Tensor | None = None) -> Tensor:
        """Features `(n, d)` from what `below` gave; for texts with `inside (n, t)`, the positions within each text."""
        n, device = len(activations), activations.device
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

    def lying_above(self) -> Above:
        """Found by gradient: the parameters that the features depend on when the activations are given."""
        own = {k: p for k, p in self.core.named_parameters()}
        frozen = {id(p) for m in self.kept_below for p in m.parameters()}
        asked = {k: p for k, p in own.items() if id(p) not in frozen}
        wanted = [(p, p.requires_grad) for p in asked.values()]
        x = example(self.classifier, *EXAMPLES[0])
        with torch.no_grad():
            a = self.below(x)
        try:
            for p, _ in wanted:
                p.requires_grad_(True)
            with torch.enable_grad():
                z = self.above(a, x >= 0 if self.texts else None)
            gradients = (
                torch.autograd.grad(z.sum(), list(asked.values()), allow_unused=True)
                if z.requires_grad
                else [None] * len(asked)
            )
        finally:
            for p, required in wanted:
                p.requires_grad_(required)
        names = tuple(k for k, g in zip(asked, gradients, strict=True) if g is not None)
        return Above(dict(self._above), names)

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
            self.source._forward_hooks = child._forward_hooks  # whoever reads the module's output reads it here too
            return self.source
        calls = self.traces[0].calls.get(path, [])
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
        return self.traces[0].calls

    def _stand_in(self, child: nn.Module, path: str) -> StandIn:
        out = [t.calls[path][0].out for t in self.traces]
        stand_in = StandIn(*out)
        stand_in._forward_hooks = child._forward_hooks
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


def example(classifier: Classifier, n: int, t: int) -> Tensor:
    """Noise in place of `n` preprocessed images, or token ids of texts, the longest of `t` tokens."""
    generator = torch.Generator().manual_seed(0)
    p = classifier.preprocess
    device = classifier.head.weight.device
    if isinstance(p, Preprocess):
        return torch.randn(n, p.channels, p.height, p.width, generator=generator).to(device)
    ids = torch.randint(1, 4, (n, t), generator=generator)
    ids[-1, t // 2 :] = -1
    return ids.to(device)


def traces_of(classifier: Classifier) -> tuple[Trace, Trace]:
    """Two recorded passes. Raises ValueError for a classifier in train mode."""
    if classifier.training:
        raise ValueError("the classifier is in train mode, where activations depend on the batch; call eval() first")
    core, _ = core_of(classifier)
    one, two = (trace(core, example(classifier, *sizes)) for sizes in EXAMPLES)
    return one, two


def split_at_cut(classifier: Classifier, name: str, traces: tuple[Trace, Trace] | None = None) -> Split:
    """Cut the backbone of `classifier`, in eval mode, behind the module `name`, checked to the bit on an example.

    Raises ConfigError, with the nearest names that work, for a module that the backbone lacks, that runs more than once
    or not at all, past which more than one tensor goes, or above which no weights lie; ValueError in train mode.
    """
    traces = traces or traces_of(classifier)
    problem = _problem(classifier, name, traces)
    if isinstance(problem, Split):
        return problem
    raise ConfigError(f"{classifier.card.name}: no cut {name!r}: {problem}; {_nearest(classifier, name, traces)}")


def cut_names(classifier: Classifier, traces: tuple[Trace, Trace] | None = None) -> tuple[str, ...]:
    """Names of all modules at which `classifier` can be cut, one per tensor, the deepest (nearest the input) first."""
    return tuple(split.name for split in splits(classifier, traces or traces_of(classifier)))


def splits(classifier: Classifier, traces: tuple[Trace, Trace]) -> Iterator[Split]:
    """Every cut that works, the deepest first."""
    prefix = core_of(classifier)[1]
    for names in traces[0].needed:
        for name in names:
            found = _problem(classifier, name.removeprefix(prefix), traces)
            if isinstance(found, Split):
                yield found
                break


def _problem(classifier: Classifier, name: str, traces: tuple[Trace, Trace]) -> Split | str:
    """The cut at `name`, or why there is none."""
    core, prefix = core_of(classifier)
    modules, calls = dict(core.named_modules()), traces[0].calls
    inner = prefix + name if prefix + name in modules else name
    if not name or inner not in modules:
        return "the backbone has no such module"
    if len(calls.get(inner, [])) != 1:
        return f"it runs {len(calls.get(inner, []))} times in one pass"
    out = [leaf for leaf in pytree.tree_leaves(calls[inner][0].out) if isinstance(leaf, Tensor)]
    if len(out) != 1:
        return f"it gives {len(out)} tensors"
    if not any(inner in names for names in traces[0].needed):
        return "more than one tensor passes between what is below and what is above"
    try:
        split = Split(classifier, name, traces)
        split.shape()
        return _differs(split) or split
    except (ConfigError, RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as e:
        return f"what is above cannot run alone ({str(e).splitlines()[0] if str(e) else type(e).__name__})"


@torch.no_grad()
def _differs(split: Split) -> str | None:
    """Why `above(below(x))` is not the backbone's answer; None where it is, bit for bit."""
    x = example(split.classifier, *EXAMPLES[1])
    expected = split.core(x)
    a = split.below(x)
    if len(a) != len(x) or not a.is_floating_point():
        return f"its output has shape {tuple(a.shape)}; expected floats, one block per input"
    z = split.above(a, x >= 0 if split.texts else None)
    if z.isnan().any() and not expected.isnan().any():
        return "more than one tensor passes between what is below and what is above"
    if not torch.equal(z, expected):
        return f"what is above gives other features, by up to {(z - expected).abs().max():.1e}"
    return None if split.lying_above().parameters else "no weights lie above it but the head's"


def _nearest(classifier: Classifier, name: str, traces: tuple[Trace, Trace]) -> str:
    """Names that work: the most similar ones and the next below and above in the order of the pass."""
    core, prefix = core_of(classifier)
    known = cut_names(classifier, traces)
    if not known:
        return "no cut of this backbone works"
    calls = traces[0].calls
    inner = prefix + name if prefix + name in dict(core.named_modules()) else name
    close = difflib.get_close_matches(name, known, n=NEAREST, cutoff=0.5)
    if inner in calls:
        when = calls[inner][0].ended
        by_distance = sorted(known, key=lambda k: abs(_inner_call(calls, prefix, k).ended - when))
        close = by_distance[:2] + close
    chosen = set(known if len(known) <= NEAREST else [*dict.fromkeys(close or known[:NEAREST])][:NEAREST])
    listed = [k for k in known if k in chosen]
    return f"{'known' if len(listed) == len(known) else 'the nearest that work'}: {', '.join(listed)}"


def _inner_call(calls: Mapping[str, list[Call]], prefix: str, name: str) -> Call:
    return calls.get(prefix + name, calls.get(name, [Call(0)]))[0]


def _tensor(out: Any) -> Tensor:
    found: Tensor = next(leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor))
    return found


def _size(p: int, q: int, n: int, t: int) -> int:
    """A size that was `p` and `q` in the two EXAMPLES, for `n` inputs of `t` tokens: the same, or a multiple."""
    (n1, t1), (n2, t2) = EXAMPLES
    for one, two, now in ((1, 1, 1), (n1, n2, n), (t1, t2, t), (n1 * t1, n2 * t2, n * t)):
        if p * two == q * one and p % one == 0:
            return p // one * now
    raise ValueError(f"a size of {p} for {n1} inputs and {q} for {n2}")
