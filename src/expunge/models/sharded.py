"""Sharded classifiers, as in SISA: the layers above a cut exist once per shard, each trained on its own rows.

Bourtoule et al. (arXiv 1912.03817) train one model per disjoint shard of the rows and combine their outputs, so that a
request retrains only the shards that contain its rows. Here the shards share the layers up to the cut. The features
`z (n, S C)` are the concatenated log-probabilities of the S shards for C classes. The head averages them, for each
class over the shards that were trained on rows of it. The whole is therefore a classifier with a linear head.
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
from expunge.models.cut_split import CutSplit, Traces, core_of, tensor_of
from expunge.models.cuts import split_at_cut, traces_of, uncut
from expunge.models.sentence import ByLength
from expunge.models.tokens import Tokens

LEAST_ROWS = 2  # a shard with fewer is not trained, since batch norm needs two, and gets no weight


class Upper(nn.Module):
    """The part of one shard: the layers above the cut, and a head `z_s (n, d) -> (n, C)`."""

    def __init__(self, tail: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.tail = tail
        self.head = head


class ShardedCore(nn.Module):
    """Maps preprocessed inputs to the concatenated log-probabilities of the shards, `(n, S C)` float32.

    `base` is the complete public backbone. Its layers up to the cut run once for all shards.
    """

    below: CutSplit
    above: list[CutSplit]

    def __init__(self, base: Classifier, cut: str, count: int, traces: Traces | None = None) -> None:
        super().__init__()
        traces = traces or traces_of(base)
        below = split_at_cut(base, cut, traces)
        above = [uncut(copy_above(base, below), cut, traces) for _ in range(count)]
        self.base = below.core
        self.uppers = nn.ModuleList(Upper(split.tail, split.classifier.head) for split in above)
        self.below, self.above = below, above  # not modules: they run `base` and `uppers`

    def __deepcopy__(self, memo: dict[int, Any]) -> ShardedCore:
        """Cut a copy of the base again, because traces refer to an autograd graph, which cannot be copied."""
        base = copy.deepcopy(self.below.classifier, memo)
        copied = ShardedCore(base.eval(), self.below.name, len(self.uppers))
        copied.load_state_dict(self.state_dict())
        memo[id(self)] = copied
        return copied.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the log-probabilities `(n, S C)`, shard after shard."""
        activations = self._shared(x)
        inside = x >= 0 if self.below.texts else None
        parts = []
        for split, upper in zip(self.above, self.uppers, strict=True):
            assert isinstance(upper, Upper)
            logits = upper.head(split.above(activations, inside))
            parts.append(torch.log_softmax(logits.float(), dim=1))
        return torch.cat(parts, dim=1)

    def _shared(self, x: Tensor) -> Tensor:
        """Return the activations at the cut."""
        if not torch.compiler.is_exporting():
            return self.below.below(x)
        # An exporter traces complete calls, so the whole backbone runs, and the exporter drops the unused layers.
        seen: list[Any] = []
        handle = self.base.get_submodule(self.below.inner).register_forward_hook(lambda _m, _i, out: seen.append(out))
        try:
            self.base(x)
        finally:
            handle.remove()
        return tensor_of(seen[0])


def copy_above(base: Classifier, below: CutSplit) -> Classifier:
    """Copy `base`, sharing the parameters up to the cut with it."""
    frozen = {id(p) for m in [*below.stand_ins, below.source] for p in m.replaced.parameters()}
    shared = {i: p for p in below.core.parameters() if (i := id(p)) in frozen}
    return copy.deepcopy(base, shared)  # deepcopy's memo: these objects are not copied


def sharded(base: Classifier, cut: str, count: int, card: ModelCard, traces: Traces | None = None) -> Classifier:
    """Return a classifier in eval mode with `count` shards above the module `cut`, all with the weights of `base`.

    `card` is the description of the whole; its `feature_dim` becomes `count` times the number of classes. All shards
    have the same weight in the head (see `average`). `traces` are those of `base`, or None to make them. Raises
    ConfigError for an invalid cut.
    """
    classes = card.num_classes
    core = ShardedCore(base, cut, count, traces)
    backbone = ByLength(core) if isinstance(base.preprocess, Tokens) else core
    head = nn.Linear(count * classes, classes)
    classifier = Classifier(backbone, head, base.preprocess, replace(card, feature_dim=count * classes)).eval()
    classifier.set_head(*average(np.ones((count, classes), np.int64)))
    return classifier


def average(counts: NDArray[np.integer]) -> tuple[Tensor, Tensor]:
    """Return weight `(C, S C)` and bias `(C,)` of a head that averages the log-probabilities of the shards.

    `counts (S, C)` are the training rows per shard and class. The mean for a class is over the trained shards with rows
    of it, because the others never learned it; if no shard has any, it is over all trained shards.
    """
    shares = shard_shares(counts)
    shards, classes = counts.shape
    weight = torch.zeros(classes, shards, classes)
    for c in range(classes):
        weight[c, :, c] = torch.from_numpy(shares[:, c])
    return weight.reshape(classes, shards * classes), torch.zeros(classes)


def shard_shares(counts: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return the weight `(S, C)` of each shard in the mean for each class; columns sum to 1. See `average`."""
    trained = counts.sum(axis=1) >= LEAST_ROWS
    has_class = (counts > 0) & trained[:, None]
    has_class |= ~has_class.any(axis=0) & (trained if trained.any() else True)[..., None]  # type: ignore[index]
    shares: NDArray[np.float32] = (has_class / has_class.sum(axis=0)).astype(np.float32)
    return shares


def core_with_shards(classifier: Classifier) -> ShardedCore | None:
    """Return the sharded core of `classifier`; None if it has no shards."""
    core = core_of(classifier)[0]
    return core if isinstance(core, ShardedCore) else None


def unsharded(classifier: Classifier) -> Classifier:
    """Return the public classifier from which shards were made (its head is unused), or `classifier` without shards."""
    core = core_with_shards(classifier)
    return classifier if core is None else core.below.classifier


def upper_state(classifier: Classifier, cut: str, traces: Traces) -> dict[str, Tensor]:
    """Return copies of the tensors above the cut of a `classifier` without shards, with the names in `Upper`."""
    upper = Upper(uncut(classifier, cut, traces).tail, classifier.head)
    return {name: tensor.detach().contiguous().clone() for name, tensor in upper.state_dict().items()}


def with_upper(base: Classifier, cut: str, traces: Traces, state: Mapping[str, Tensor]) -> Classifier:
    """Return a copy of `base` with the tensors `state` from `upper_state`."""
    copied = copy.deepcopy(base)
    if not isinstance(base.preprocess, Tokens):
        copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    Upper(uncut(copied, cut, traces).tail, copied.head).load_state_dict(state)
    return copied
