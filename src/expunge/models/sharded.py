"""A classifier whose part above a cut exists several times, each trained on rows of its own: shards, as in SISA.

Bourtoule et al. (arXiv 1912.03817) train one model per disjoint shard of the rows and combine their answers, so that a
request trains again only the shards that hold its rows. Here the shards share the layers up to the cut. The features
`z (n, S C)` of the whole are the log-probabilities of its S shards side by side, and its head is their mean: for every
class over the shards that were trained on rows of it. So it is a classifier as any other, with a linear head.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.models.classifier import Classifier, ModelCard
from expunge.models.cut_split import Split, Traces, core_of, tensor_of
from expunge.models.cuts import split_at_cut, traces_of
from expunge.models.sentence import ByLength
from expunge.models.tokens import Tokens

LEAST_ROWS = 2  # a shard with fewer is not trained (batch norm has nothing to norm by) and has no say


class Upper(nn.Module):
    """What one shard has of its own: the layers above the cut, and a head `z_s (n, d) -> (n, C)`."""

    def __init__(self, tail: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.tail = tail
        self.head = head


class ShardedCore(nn.Module):
    """Preprocessed inputs -> log-probabilities of the shards side by side, `(n, S C)` float32.

    `base` holds the whole public backbone, of which the layers up to the cut run, once for all shards.
    """

    below: Split
    above: list[Split]

    def __init__(self, base: Classifier, cut: str, count: int) -> None:
        super().__init__()
        traces = traces_of(base)
        below = split_at_cut(base, cut, traces)
        above = [uncut(copy_above(base, below), cut, traces) for _ in range(count)]
        self.base = below.core
        self.uppers = nn.ModuleList(Upper(split.tail, split.classifier.head) for split in above)
        self.below, self.above = below, above  # how the halves are run

    def __deepcopy__(self, memo: dict[int, Any]) -> ShardedCore:
        """Halved anew: traces of the halves belong to a graph, which is not copied."""
        base = copy.deepcopy(self.below.classifier, memo)
        made = ShardedCore(base.eval(), self.below.name, len(self.uppers))
        made.load_state_dict(self.state_dict())
        memo[id(self)] = made
        return made.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        activations = self._shared(x)
        inside = x >= 0 if self.below.texts else None
        parts = []
        for split, upper in zip(self.above, self.uppers, strict=True):
            assert isinstance(upper, Upper)
            logits = upper.head(split.above(activations, inside))
            parts.append(torch.log_softmax(logits.float(), dim=1))
        return torch.cat(parts, dim=1)

    def _shared(self, x: Tensor) -> Tensor:
        """Activations at the cut."""
        if not torch.compiler.is_exporting():
            return self.below.below(x)
        # An exporter follows calls to their end: the whole backbone runs, and what is not used is left out afterwards.
        seen: list[Any] = []
        handle = self.base.get_submodule(self.below.inner).register_forward_hook(lambda _m, _i, out: seen.append(out))
        try:
            self.base(x)
        finally:
            handle.remove()
        return tensor_of(seen[0])


def copy_above(base: Classifier, below: Split) -> Classifier:
    """A copy of `base` that shares its layers up to the cut and has all others for itself."""
    frozen = {id(p) for m in [*below.stand_ins, below.source] for p in m.replaced.parameters()}
    shared = {i: p for p in below.core.parameters() if (i := id(p)) in frozen}
    return copy.deepcopy(base, shared)  # a memo of what is not copied


def uncut(classifier: Classifier, cut: str, traces: Traces) -> Split:
    """The halves of a classifier of which another one with the same architecture was traced and cut before."""
    return Split(classifier, cut, traces)


def sharded(base: Classifier, cut: str, count: int, card: ModelCard) -> Classifier:
    """`count` shards above the module `cut` of `base`, in eval mode, all with the weights of `base` there.

    `card`: the description of the whole; its `feature_dim` becomes `count` times the number of classes. Every shard
    has the same say (see `average`). Raises ConfigError where the backbone cannot be cut there.
    """
    classes = card.num_classes
    core = ShardedCore(base, cut, count)
    backbone = ByLength(core) if isinstance(base.preprocess, Tokens) else core
    head = nn.Linear(count * classes, classes)
    made = Classifier(backbone, head, base.preprocess, replace(card, feature_dim=count * classes)).eval()
    made.set_head(*average(np.ones((count, classes), np.int64)))
    return made


def average(counts: NDArray[np.integer]) -> tuple[Tensor, Tensor]:
    """Weight `(C, S C)` and bias `(C,)` of the mean of log-probabilities, from rows `counts (S, C)` of shards.

    The mean for a class is over the shards with rows of it, for the others never learned it; over all that were trained
    where nobody has any.
    """
    shares = say(counts)
    shards, classes = counts.shape
    weight = torch.zeros(classes, shards, classes)
    for c in range(classes):
        weight[c, :, c] = torch.from_numpy(shares[:, c])
    return weight.reshape(classes, shards * classes), torch.zeros(classes)


def say(counts: NDArray[np.integer]) -> NDArray[np.float32]:
    """The share `(S, C)` that each shard has in the answer for each class; columns sum to 1."""
    trained = counts.sum(axis=1) >= LEAST_ROWS
    held = (counts > 0) & trained[:, None]
    held |= ~held.any(axis=0) & (trained if trained.any() else True)[..., None]  # type: ignore[index]
    shares: NDArray[np.float32] = (held / held.sum(axis=0)).astype(np.float32)
    return shares


def core_with_shards(classifier: Classifier) -> ShardedCore | None:
    """What makes its features, where it has shards."""
    core = core_of(classifier)[0]
    return core if isinstance(core, ShardedCore) else None


def unsharded(classifier: Classifier) -> Classifier:
    """The classifier itself, or of one with shards the public one that they were made from, with a head of no use."""
    core = core_with_shards(classifier)
    return classifier if core is None else core.below.classifier


def upper_state(classifier: Classifier, cut: str, traces: Traces) -> dict[str, Tensor]:
    """What a shard keeps of a `classifier` without shards: copies of its tensors above the cut, named as in `Upper`."""
    upper = Upper(uncut(classifier, cut, traces).tail, classifier.head)
    return {name: tensor.detach().contiguous().clone() for name, tensor in upper.state_dict().items()}


def with_upper(base: Classifier, cut: str, traces: Traces, state: Mapping[str, Tensor]) -> Classifier:
    """A copy of `base` with the tensors that `upper_state` gave."""
    made = copy.deepcopy(base)
    if not isinstance(base.preprocess, Tokens):
        made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    Upper(uncut(made, cut, traces).tail, made.head).load_state_dict(state)
    return made
