"""Many linear heads on cached features, trained together: per-row attacks that need no network for each model.

Each head learns from a random half of the rows, so about half of the heads never had a given row. Attacks on these
heads are valid for the whole model only if the backbone never saw the forgotten rows; `train_heads` refuses other
backbones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.evaluation.representation import check_features
from expunge.evaluation.ulira import MARGIN_LIMIT

TOGETHER = 32  # heads per batched product: their minibatches fit the processor's cache


@dataclass(frozen=True)
class HeadRecipe:
    """Settings of minibatch SGD on whitened features; the learning rate falls linearly to 0.

    A head has only half of the rows, so its minibatches hold `batch // 2` rows.
    """

    epochs: int = 3
    batch: int = 256
    rate: float = 0.5
    decay: float = 1e-4


@dataclass(frozen=True)
class ShadowHeads:
    """N trained heads: `weight (N, C, d)` and `bias (N, C)` float32, and `member (N, n)` bool, the rows of each."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    member: NDArray[np.bool_]

    def margins(self, z: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float32]:
        """log p_y - log(1 - p_y) of every head on every row, `(N, n)`, clipped to MARGIN_LIMIT.

        If an unlearning map f is applied to the features and the heads stay frozen, `margins(f(z), labels)` are the
        scores of the unlearned heads.
        """
        heads, classes, dim = self.weight.shape
        x = torch.from_numpy(np.ascontiguousarray(check_features(z), dtype=np.float32))
        y = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        weight = torch.from_numpy(self.weight).permute(2, 1, 0).reshape(dim, classes * heads).contiguous()
        bias = torch.from_numpy(self.bias).T.reshape(-1)
        out = torch.empty(heads, len(x))
        for start in range(0, len(x), 512):
            rows = slice(start, start + 512)
            logits = torch.addmm(bias, x[rows], weight).view(-1, classes, heads)
            index = torch.arange(len(logits))
            own = logits[index, y[rows]]
            logits[index, y[rows]] = -torch.inf
            out[:, rows] = (own - torch.logsumexp(logits, dim=1)).clamp_(-MARGIN_LIMIT, MARGIN_LIMIT).T
        return out.numpy()

    def probabilities(self, z: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float32]:
        """Probability of the true class, `(N, n)`."""
        return torch.sigmoid(torch.from_numpy(self.margins(z, labels))).numpy()


def train_heads(
    z: NDArray[Any],
    labels: NDArray[Any],
    heads: int,
    *,
    saw_forget_data: bool,
    seed: int,
    classes: int | None = None,
    recipe: HeadRecipe | None = None,
    member: NDArray[np.bool_] | None = None,
) -> ShadowHeads:
    """Train `heads` softmax heads on features `z (n, d)`.

    Each head learns from a random half of the rows, or from those that `member (heads, n)` marks, in an order of its
    own. All heads take as many steps as the one with the fewest rows. The same input and seed give the same heads.
    Raises ValueError where the backbone saw the forgotten rows: a head would then have learned from a row through the
    features even without having it. Also raises ValueError for shapes or labels that do not fit and for a head without
    rows.
    """
    if saw_forget_data:
        raise ValueError(
            "heads on these features cannot stand for models without the forgotten rows, because the backbone saw "
            "these rows; train whole networks instead (shadow.networks)"
        )
    x, recipe = check_features(z), recipe or HeadRecipe()
    y = np.asarray(labels, dtype=np.int64)
    if y.shape != (len(x),) or len(x) < 2 or heads < 2:
        raise ValueError(
            f"shadow heads need one label per row, at least two rows and at least two heads, got {y.shape} labels, "
            f"{x.shape} rows and {heads} heads"
        )
    count = int(y.max()) + 1 if classes is None else classes
    if y.min() < 0 or y.max() >= count:
        raise ValueError(f"labels must be in [0, {count})")
    generator = torch.Generator().manual_seed(seed)
    if member is None:
        halves = torch.stack([torch.randperm(len(x), generator=generator) < len(x) // 2 for _ in range(heads)])
    elif member.shape == (heads, len(x)):
        halves = torch.from_numpy(np.ascontiguousarray(member, dtype=bool))
    else:
        raise ValueError(f"member must be (heads, rows) = {(heads, len(x))}, got {member.shape}")
    if not bool(halves.any(dim=1).all()):
        raise ValueError(f"head {int((~halves.any(dim=1)).nonzero()[0, 0])} has no row to learn from")
    centre, unmix = whitening(x)
    white = torch.from_numpy(((x - centre) @ unmix).astype(np.float32))
    weight, bias = _descend(white, torch.from_numpy(y), halves, count, recipe, seed)
    w = (torch.from_numpy(unmix.astype(np.float32)) @ weight).transpose(1, 2)
    b = bias - w @ torch.from_numpy(centre.astype(np.float32))
    return ShadowHeads(w.contiguous().numpy(), b.contiguous().numpy(), halves.numpy())


def complementary_halves(rows: int, heads: int, seed: int) -> NDArray[np.bool_]:
    """Rows of each head, `(heads, rows)` bool: a random half and its complement, alternately.

    Every row is in exactly half of the heads, so the scores of the heads that had a row form a full matrix. Raises
    ValueError for an odd number of heads.
    """
    if heads % 2 or heads < 2:
        raise ValueError(f"the number of heads must be even, because halves come in pairs, got {heads}")
    rng = np.random.default_rng(seed)
    first = np.stack([rng.permutation(rows) < rows // 2 for _ in range(heads // 2)])
    return np.stack([first, ~first], axis=1).reshape(heads, rows)


def whitening(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean `(d,)` and matrix `(d, d)` that make the features uncorrelated with unit variance.

    Directions with less than 1e-6 of the largest variance are dropped (a zero column). In these coordinates gradient
    steps of a softmax head are close to Newton steps, so a few epochs suffice.
    """
    centre = x.mean(axis=0, dtype=np.float64)
    a = np.asarray(x, dtype=np.float32) - centre.astype(np.float32)
    values, vectors = np.linalg.eigh((a.T @ a).astype(np.float64) / len(a))
    keep = values > 1e-6 * max(values[-1], 1e-30)
    return centre, vectors * np.where(keep, 1.0 / np.sqrt(np.where(keep, values, 1.0)), 0.0)


def _descend(
    x: torch.Tensor, y: torch.Tensor, member: torch.Tensor, classes: int, recipe: HeadRecipe, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Train all heads by SGD and return their weights `(N, d, C)` and biases `(N, C)`.

    Each head takes its rows in an order of its own. With a shared order, heads of one call would be more alike than
    heads of two calls, and an attack would distinguish the calls although no row does.
    """
    fewest, parts = int(member.sum(dim=1).min()), []
    for start in range(0, len(member), TOGETHER):
        some = member[start : start + TOGETHER]
        orders = [np.random.default_rng([seed, start + i]) for i in range(len(some))]
        parts.append(_descend_together(x, y, some, classes, recipe, orders, fewest))
    return torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])


def _descend_together(
    x: torch.Tensor,
    y: torch.Tensor,
    member: torch.Tensor,
    classes: int,
    recipe: HeadRecipe,
    orders: list[np.random.Generator],
    fewest: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    heads, dim = member.shape[0], x.shape[1]
    own = [mask.nonzero()[:, 0].numpy() for mask in member]
    size = max(1, min(recipe.batch // 2, fewest))
    steps, step = recipe.epochs * (fewest // size), 0
    # Rows of a minibatch are the last dimension of `p`, along which the softmax over few classes is fast.
    weight, bias = torch.zeros(heads, classes, dim), torch.zeros(heads, classes, 1)
    minus = torch.full((heads, 1, size), -1.0)
    for _ in range(recipe.epochs):
        walks = [rng.permutation(rows)[:fewest] for rng, rows in zip(orders, own, strict=True)]
        order = torch.from_numpy(np.stack(walks))
        for start in range(0, fewest - size + 1, size):
            rows = order[:, start : start + size].reshape(-1)
            rate = recipe.rate * (1.0 - step / steps)
            bx = x.index_select(0, rows).view(heads, size, dim)
            p = torch.baddbmm(bias, weight, bx.transpose(1, 2)).softmax(dim=1)
            p.scatter_add_(1, y.index_select(0, rows).view(heads, 1, size), minus)
            weight.mul_(1.0 - rate * recipe.decay).baddbmm_(p, bx, alpha=-rate / size)
            bias.sub_(p.sum(dim=2, keepdim=True), alpha=rate / size)
            step += 1
    return weight.transpose(1, 2), bias[:, :, 0]
