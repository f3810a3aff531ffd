"""Many linear heads on cached features, trained at once: per-row attacks for the price of a few matrix products.

Head i learns from a random half of the rows, so half of the heads never had a given row. What they say about membership
holds for the whole model only where the backbone never saw the forgotten rows; with another backbone training refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.evaluation.representation import check_features
from expunge.evaluation.ulira import MARGIN_LIMIT


@dataclass(frozen=True)
class Recipe:
    """Minibatch SGD on whitened features; the rate falls linearly to 0."""

    epochs: int = 3
    batch: int = 256
    rate: float = 0.5
    decay: float = 1e-4


@dataclass(frozen=True)
class ShadowHeads:
    """`weight (N, C, d)`, `bias (N, C)` float32; `member (N, n)` bool: which rows each head learned from."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    member: NDArray[np.bool_]

    def margins(self, z: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float32]:
        """log p_y - log(1 - p_y) of every head on every row, `(N, n)`, clipped to MARGIN_LIMIT.

        For an unlearning map f behind which the heads stay frozen, `margins(f(z), labels)` are the unlearned heads'
        scores.
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
    recipe: Recipe | None = None,
    member: NDArray[np.bool_] | None = None,
) -> ShadowHeads:
    """Train `heads` softmax heads on features `z (n, d)`, each on its own random half of the rows, or as `member
    (heads, n)` says.

    All heads walk through the same minibatches; a mask takes out the rows that a head must not see. One matrix product
    serves all of them. Same input and seed give the same heads. Raises ValueError where the backbone saw the
    forgotten rows: heads that never had a row would then still have learned from it through the features.
    """
    if saw_forget_data:
        raise ValueError(
            "the backbone saw the forgotten rows, so heads on its features are no models without them; "
            "train full models instead (an ensemble of retrained networks)"
        )
    x, recipe = check_features(z), recipe or Recipe()
    y = np.asarray(labels, dtype=np.int64)
    if y.shape != (len(x),) or len(x) < 2 or heads < 2:
        raise ValueError(
            f"need one label per row, two rows and two heads: {y.shape} labels, {x.shape} rows, {heads} heads"
        )
    count = int(y.max()) + 1 if classes is None else classes
    if y.min() < 0 or y.max() >= count:
        raise ValueError(f"labels must lie in [0, {count})")
    generator = torch.Generator().manual_seed(seed)
    if member is None:
        halves = torch.stack([torch.randperm(len(x), generator=generator) < len(x) // 2 for _ in range(heads)])
    elif member.shape == (heads, len(x)):
        halves = torch.from_numpy(np.ascontiguousarray(member, dtype=bool))
    else:
        raise ValueError(f"member must be (heads, rows) = {(heads, len(x))}, got {member.shape}")
    centre, unmix = whitening(x)
    white = torch.from_numpy(((x - centre) @ unmix).astype(np.float32))
    weight, bias = _descend(white, torch.from_numpy(y), halves, count, recipe, generator)
    w = (torch.from_numpy(unmix.astype(np.float32)) @ weight).view(-1, count, heads).permute(2, 1, 0)
    b = bias.view(count, heads).T - w @ torch.from_numpy(centre.astype(np.float32))
    return ShadowHeads(w.contiguous().numpy(), b.contiguous().numpy(), halves.numpy())


def complementary_halves(rows: int, heads: int, seed: int) -> NDArray[np.bool_]:
    """`(heads, rows)` bool for an even number of heads: a random half and the other half, in turn.

    Every row is in exactly half of the heads, so the scores of the heads that had a row form a full matrix.
    """
    if heads % 2 or heads < 2:
        raise ValueError(f"halves come in pairs, got {heads} heads")
    rng = np.random.default_rng(seed)
    first = np.stack([rng.permutation(rows) < rows // 2 for _ in range(heads // 2)])
    return np.stack([first, ~first], axis=1).reshape(heads, rows)


def whitening(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean `(d,)` and matrix `(d, d)` that make the features uncorrelated with unit variance.

    Directions below 1e-6 of the largest variance are dropped (a zero column). In these coordinates plain gradient
    steps are near Newton steps for a softmax head, so a few epochs suffice.
    """
    centre = x.mean(axis=0, dtype=np.float64)
    a = np.asarray(x, dtype=np.float32) - centre.astype(np.float32)
    values, vectors = np.linalg.eigh((a.T @ a).astype(np.float64) / len(a))
    keep = values > 1e-6 * max(values[-1], 1e-30)
    return centre, vectors * np.where(keep, 1.0 / np.sqrt(np.where(keep, values, 1.0)), 0.0)


def _descend(
    x: torch.Tensor, y: torch.Tensor, member: torch.Tensor, classes: int, recipe: Recipe, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights `(d, C * N)` and biases `(C * N,)` of all heads; class-major, so that each row's softmax runs over long
    rows.
    """
    heads, dim = len(member), x.shape[1]
    weight, bias = torch.zeros(dim, classes * heads), torch.zeros(classes * heads)
    keep = member.T.contiguous()
    size = min(recipe.batch, len(x))
    steps = recipe.epochs * (len(x) // size)
    logits, grad = torch.empty(size, classes * heads), torch.empty_like(weight)
    index, step = torch.arange(size), 0
    for _ in range(recipe.epochs):
        order = torch.randperm(len(x), generator=generator)
        ex, ey, ek = x[order], y[order], keep[order]
        for start in range(0, len(x) - size + 1, size):
            rows = slice(start, start + size)
            rate = recipe.rate * (1.0 - step / steps)
            mask = ek[rows].to(torch.float32)
            torch.addmm(bias, ex[rows], weight, out=logits)
            p = logits.view(size, classes, heads)
            torch.softmax(p, dim=1, out=p)
            p.mul_(mask[:, None])
            p[index, ey[rows]] -= mask
            torch.mm(ex[rows].T, logits, out=grad)
            # Each head has about half of the batch.
            weight.mul_(1.0 - rate * recipe.decay).add_(grad, alpha=-2.0 * rate / size)
            bias.add_(logits.sum(dim=0), alpha=-2.0 * rate / size)
            step += 1
    return weight, bias
