"""Cut a backbone after any of its modules: `below(x)` returns that module's output, `above(a)` computes z from it.

`above` runs the backbone's own forward, in which the modules below the cut are replaced by stand-ins and the cut module
by its stored output. Modules above the cut are the same objects as in the classifier, so training, batch norm modes and
gradients apply to them. Stand-ins return NaN: a path to the output that bypasses the cut makes the output NaN, and the
cut is refused. docs/cuts.md explains why no traced graph is used. The attention mask of a text encoder is recomputed
from the positions inside the text.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from expunge.models.classifier import Classifier
from expunge.models.cut_split import EXAMPLES, CutSplit, Traces, core_of
from expunge.models.cut_trace import Call, trace
from expunge.models.preprocess import Preprocess
from expunge.system.errors import ConfigError

NOTHING_ABOVE = "no weights lie above it but the head's"
NEAREST = 6  # valid names that an error message offers


def example(classifier: Classifier, n: int, t: int) -> Tensor:
    """Return random inputs: `n` preprocessed images, or token ids `(n, t)`, the last of half length (seed 0)."""
    generator = torch.Generator().manual_seed(0)
    p = classifier.preprocess
    device = classifier.head.weight.device
    if isinstance(p, Preprocess):
        return torch.randn(n, p.channels, p.height, p.width, generator=generator).to(device)
    ids = torch.randint(1, 4, (n, t), generator=generator)
    ids[-1, t // 2 :] = -1
    return ids.to(device)


def traces_of(classifier: Classifier) -> Traces:
    """Trace two forward passes over the EXAMPLES.

    Raises ValueError for a classifier in train mode, and ConfigError for one with shards, which are already cut.
    """
    if classifier.training:
        raise ValueError("the classifier is in train mode, where activations depend on the batch; call eval() first")
    core, _ = core_of(classifier)
    if (shards := getattr(core, "uppers", None)) is not None:
        raise ConfigError(
            f"{classifier.card.name}: has {len(shards)} shards (model.shards, model.slices), so its backbone cannot "
            "be cut as a whole; delete from it with the method exact, or train with one shard and one slice"
        )
    one, two = (example(classifier, *sizes) for sizes in EXAMPLES)
    with torch.no_grad():
        z = core(two)
    return Traces(trace(core, one), trace(core, two), two, z)


def split_at_cut(classifier: Classifier, name: str, traces: Traces | None = None) -> CutSplit:
    """Cut the backbone of `classifier` after the module `name`; the result is checked bit by bit on an example.

    Raises ValueError for a classifier in train mode, and ConfigError for an invalid cut, with the nearest valid names.
    A cut is invalid if there is no such module, if it does not run exactly once, if more than one tensor passes from
    below to above, or if the backbone has no weights above it.
    """
    traces = traces or traces_of(classifier)
    problem = _problem(classifier, name, traces)
    if isinstance(problem, CutSplit):
        return problem
    raise ConfigError(f"{classifier.card.name}: no cut {name!r}: {problem}; {_nearest(classifier, name, traces)}")


def uncut(classifier: Classifier, cut: str, traces: Traces) -> CutSplit:
    """Cut a classifier with the traces of another one of the same architecture, without checking the cut again."""
    return CutSplit(classifier, cut, traces)


def cut_names(classifier: Classifier) -> tuple[str, ...]:
    """Return the names of all valid cuts of `classifier`, one per tensor, the deepest (nearest the input) first."""
    return tuple(split.name for split in splits(classifier, traces_of(classifier)))


def splits(classifier: Classifier, traces: Traces) -> Iterator[CutSplit]:
    """Yield all valid cuts, the deepest (nearest the input) first."""
    prefix = core_of(classifier)[1]
    for names in traces.first.needed:
        for name in names:
            found = _problem(classifier, name.removeprefix(prefix), traces)
            if isinstance(found, CutSplit):
                yield found
                break
            if found == NOTHING_ABOVE:
                return


def _problem(classifier: Classifier, name: str, traces: Traces) -> CutSplit | str:
    """Return the cut after the module `name`, or the reason why it is invalid."""
    core, prefix = core_of(classifier)
    modules, calls = dict(core.named_modules()), traces.first.calls
    inner = prefix + name if prefix + name in modules else name
    if not name or inner not in modules:
        return "the backbone has no such module"
    if len(calls.get(inner, [])) != 1:
        return f"it runs {len(calls.get(inner, []))} times in one pass, but a cut runs once"
    out = [leaf for leaf in pytree.tree_leaves(calls[inner][0].out) if isinstance(leaf, Tensor)]
    if len(out) != 1:
        return f"it returns {len(out)} tensors, but a cut returns one"
    if not any(inner in names for names in traces.first.needed):
        return "more than one tensor passes from below it to above it"
    try:
        split = CutSplit(classifier, name, traces)
        split.shape()
        return _differs(split) or split
    except (ConfigError, RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as e:
        return f"the part above it cannot run alone ({str(e).splitlines()[0] if str(e) else type(e).__name__})"


@torch.no_grad()
def _differs(split: CutSplit) -> str | None:
    """Return why `above(below(x))` cannot replace the backbone; None if both agree bit by bit."""
    x, expected = split.traces.x, split.traces.z
    a = split.below(x)
    if len(a) != len(x) or not a.is_floating_point():
        return f"its output has the shape {tuple(a.shape)}, but floats with one block per input are needed"
    z = split.above(a, x >= 0 if split.texts else None)
    if z.isnan().any() and not expected.isnan().any():
        return "more than one tensor passes from below it to above it"
    if not torch.equal(z, expected):
        return f"the part above it returns different features, by up to {(z - expected).abs().max():.1e}"
    above = set(split.lying_above.parameters)
    if not above:
        return NOTHING_ABOVE
    parameters = dict(split.core.named_parameters())
    below = {id(p) for m in [*split.stand_ins, split.source] for p in m.replaced.parameters()}
    shared = [k for k in above if id(parameters[k]) in below]
    return f"{shared[0]} is used both below and above it" if shared else None


def _nearest(classifier: Classifier, name: str, traces: Traces) -> str:
    """Return a hint with valid cuts: those with similar names, and the next ones in the order of the forward pass."""
    core, prefix = core_of(classifier)
    calls = traces.first.calls
    inner = prefix + name if prefix + name in dict(core.named_modules()) else name
    candidates = [names[0].removeprefix(prefix) for names in traces.first.needed]
    similar = difflib.get_close_matches(name, candidates, n=NEAREST, cutoff=0.5)
    if inner in calls:
        when = calls[inner][0].ended
        similar = sorted(candidates, key=lambda k: abs(_inner_call(calls, prefix, k).ended - when))[:4] + similar
    every = len(candidates) <= 2 * NEAREST
    working: set[str] = set()
    for candidate in dict.fromkeys([*similar, *candidates] if every or not similar else similar):
        if len(working) < NEAREST and isinstance(_problem(classifier, candidate, traces), CutSplit):
            working.add(candidate)
    if not working:
        return "run `expunge cuts` to list the cuts" if similar else "this backbone has no usable cut"
    known = every and len(working) < NEAREST
    return f"{'known' if known else 'the nearest that work'}: {', '.join(k for k in candidates if k in working)}"


def _inner_call(calls: Mapping[str, list[Call]], prefix: str, name: str) -> Call:
    return calls.get(prefix + name, calls.get(name, [Call(0)]))[0]
