"""Trace a forward pass: which modules run, in which order, and which of them lie on every path to the output."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle


@dataclass
class Call:
    """One call of a module. `began` and `ended` are event numbers; `out` is the output, with tensors on "meta".

    `node` is the autograd node of the output, None unless the output is exactly one tensor with a gradient. `fed` says
    whether a gradient of the output reaches the input of the model.
    """

    began: int
    ended: int = -1
    out: Any = None
    node: Node | None = None
    fed: bool = False


@dataclass
class Trace:
    """A traced forward pass. `calls` maps dotted module names to their calls, in order.

    `needed` lists the modules through which all of the output's dependence on the input passes, in order of the calls;
    modules with the same output tensor share a tuple.
    """

    calls: dict[str, list[Call]] = field(default_factory=dict)
    needed: list[tuple[str, ...]] = field(default_factory=list)


def trace(core: nn.Module, x: Tensor) -> Trace:
    """Trace `core(x)` in the current mode; `x` are float images `(n, c, h, w)` or int64 token ids `(n, t)`.

    Dependence on the input (for ids, on their embeddings) is read from autograd's graph. Paths without a gradient, such
    as an attention mask, are not in it, so a cut must also be checked by comparing outputs.
    """
    found, clock, nodes = Trace(), itertools.count(), {}
    sources: list[Tensor] = []
    handles: list[RemovableHandle] = []

    def before(name: str) -> Any:
        def hook(_module: nn.Module, _given: object) -> None:
            found.calls.setdefault(name, []).append(Call(next(clock)))

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
            if isinstance(module, nn.Embedding) and not x.is_floating_point() and _same_ids(given, x):
                out = out.detach().requires_grad_(True)
                sources.append(out)
            call = next(c for c in reversed(found.calls[name]) if c.ended < 0)
            call.ended, call.out = next(clock), pytree.tree_map_only(Tensor, _without_values, out)
            tensors = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
            nodes[id(call)] = [_node_of(t) for t in tensors if t.requires_grad]
            if len(tensors) == 1 and tensors[0].requires_grad:
                call.node = _node_of(tensors[0])
            return out

        return hook

    for name, module in core.named_modules():
        handles += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
    try:
        with torch.enable_grad(), _only_the_input_has_gradients(core):
            if x.is_floating_point():
                x = x.detach().clone().requires_grad_(True)
                sources.append(x)
            z = core(x)
    finally:
        for handle in handles:
            handle.remove()
    ends = {_node_of(s) for s in sources if s.requires_grad}
    fed = _reaching(z.grad_fn, ends)
    for call in itertools.chain.from_iterable(found.calls.values()):
        call.fed = any(n in fed or n in ends for n in nodes.get(id(call), []))
    found.needed = _needed(found, z.grad_fn, fed)
    return found


def _without_values(t: Tensor) -> Tensor:
    return torch.empty(t.shape, dtype=t.dtype, device="meta")


def _same_ids(given: tuple[Any, ...], ids: Tensor) -> bool:
    """Whether the input of an embedding is the token ids, and not positions or segments."""
    asked = given[0] if given else None
    return isinstance(asked, Tensor) and asked.shape == ids.shape and bool((asked == ids)[ids >= 0].all())


def _node_of(t: Tensor) -> Node:
    node: Node = torch.autograd.graph.get_gradient_edge(t).node
    return node


@contextmanager
def _only_the_input_has_gradients(core: nn.Module) -> Iterator[None]:
    learned = [p for p in core.parameters() if p.requires_grad]
    for p in learned:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learned:
            p.requires_grad_(True)


def _reaching(start: Node | None, ends: set[Node]) -> set[Node]:
    """Return the nodes of the autograd graph of `start` from which a node of `ends` can be reached, and `ends`."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(start, False)] if start is not None else []
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(n, False) for n, _ in node.next_functions if n is not None]
    reaching = set(ends)
    for node in order:  # in postorder, so the successors of a node come before it
        if any(n in reaching for n, _ in node.next_functions):
            reaching.add(node)
    return reaching


def leaves_behind(z: Tensor) -> set[int]:
    """Return the `id` of every leaf tensor, such as a parameter, to which a gradient of `z` would flow."""
    found: set[int] = set()
    seen: set[Node] = set()
    stack = [z.grad_fn] if z.grad_fn is not None else []
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            if (leaf := getattr(node, "variable", None)) is not None:  # AccumulateGrad holds the leaf
                found.add(id(leaf))
            stack += [n for n, _ in node.next_functions if n is not None]
    return found


def _needed(found: Trace, start: Node | None, fed: set[Node]) -> list[tuple[str, ...]]:
    """Find the modules on every path from input to output, by Kahn's topological sort from the output.

    A node that is the only discovered one when it is visited lies on every path.
    """
    waiting: dict[Node, int] = {}
    for node in fed:
        for following, _ in node.next_functions:
            if following in fed:
                waiting[following] = waiting.get(following, 0) + 1
    ready: deque[Node] = deque([start] if start in fed and start is not None else [])
    discovered, alone = set(ready), set()
    while ready:
        node = ready.popleft()
        discovered.discard(node)
        if not discovered:
            alone.add(node)
        for following, _ in node.next_functions:
            if following in fed:
                waiting[following] -= 1
                discovered.add(following)
                if not waiting[following]:
                    ready.append(following)
    groups: dict[Node, list[str]] = {}
    for name, calls in sorted(found.calls.items(), key=lambda item: item[1][-1].ended):
        node_of_call = calls[-1].node
        if name and len(calls) == 1 and node_of_call in alone and node_of_call is not None:
            groups.setdefault(node_of_call, []).append(name)
    return [tuple(sorted(names, key=lambda n: (n.count("."), len(n)))) for names in groups.values()]
