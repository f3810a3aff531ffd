"""Many small networks with one hidden layer, trained together in batched products, to calibrate the verdict.

All models take the same number of steps, each from its own initial weights on its own rows in its own order. The models
are therefore independent of each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class StudyRecipe:
    """Width of the hidden layer and settings of the training, by Adam with a linear decay of the learning rate to 0."""

    hidden: int
    steps: int
    batch_size: int
    lr: float


@dataclass
class Networks:
    """M networks. `weights`: tensors (M, d, h), (M, 1, h), (M, h, C) and (M, 1, C), float32."""

    weights: list[Tensor]

    def __len__(self) -> int:
        return len(self.weights[0])

    def hidden(self, x: Tensor) -> Tensor:
        """Hidden features (M, n, h), the inputs of the heads, of `x` (n, d) or (M, n, d)."""
        w1, b1, _, _ = self.weights
        return torch.relu(torch.matmul(x, w1) + b1)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (M, n, C) of `x` (n, d) or (M, n, d)."""
        return torch.baddbmm(self.weights[3], self.hidden(x), self.weights[2])

    def one(self, index: int) -> Networks:
        """Return the network `index` as a batch of one."""
        return Networks([w[index : index + 1] for w in self.weights])

    def outputs(self, x: Tensor) -> tuple[Floats32, Floats32]:
        """Logits (n, C) and hidden features (n, h) of the first network, meant for the result of `one`."""
        with torch.no_grad():
            z = self.hidden(x)
            return torch.baddbmm(self.weights[3], z, self.weights[2])[0].numpy(), z[0].numpy()


def start(seeds: list[int], dim: int, classes: int, hidden: int) -> Networks:
    """Initialise one network per seed, uniformly in ±1/sqrt(fan in) as torch.nn.Linear does."""
    weights: list[list[Tensor]] = [[], [], [], []]
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for i, (shape, fan) in enumerate([((dim, hidden), dim), ((1, hidden), dim), ((hidden, classes), hidden)]):
            weights[i].append((torch.rand(shape, generator=generator) * 2 - 1) / fan**0.5)
        weights[3].append((torch.rand((1, classes), generator=generator) * 2 - 1) / hidden**0.5)
    return Networks([torch.stack(w) for w in weights])


def order_of(rows: NDArray[np.int64], length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw `length` row numbers: successive permutations of `rows`, cut off at the end."""
    passes = -(-length // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(passes)])[:length]


def train(networks: Networks, x: Tensor, targets: Tensor, orders: Tensor, recipe: StudyRecipe) -> Networks:
    """Train all networks.

    `x (n, d)`; `targets (M, n)` or `(n,)` int64; `orders (M, steps * batch)`: the rows of each model in order. The loss
    is the mean cross-entropy of each model's batch. Gradients are written out by hand, which takes less than half of
    autograd's time for such small networks. Classes come before rows in memory, so that the softmax runs over long
    contiguous rows.
    """
    b, m = recipe.batch_size, len(networks)
    w1, b1, w2, b2 = networks.weights
    weights = [w1.clone(), b1.clone(), w2.transpose(1, 2).contiguous(), b2.transpose(1, 2).contiguous()]
    w1, b1, w2, b2 = weights
    for w in weights:
        w.grad = torch.empty_like(w)
    optimizer = torch.optim.Adam(weights, lr=recipe.lr, fused=True)
    batch, hidden = x.new_empty(m * b, x.shape[1]), x.new_empty(m, b, recipe.hidden)
    error, back = x.new_empty(m, w2.shape[1], b), torch.empty_like(hidden)
    minus = x.new_full((m, 1, b), -1.0)
    steps = orders.shape[1] // b
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * (1 - step / steps)
        rows = orders[:, step * b : (step + 1) * b]
        y = targets[rows] if targets.ndim == 1 else torch.gather(targets, 1, rows)
        xb = torch.index_select(x, 0, rows.reshape(-1), out=batch).view(m, b, -1)
        torch.baddbmm(b1, xb, w1, out=hidden).clamp_min_(0)
        torch.baddbmm(b2, w2, hidden.transpose(1, 2), out=error)
        error.sub_(error.amax(1, keepdim=True)).exp_()
        error.div_(error.sum(1, keepdim=True)).scatter_add_(1, y[:, None], minus).div_(b)
        torch.bmm(error, hidden, out=w2.grad)
        torch.sum(error, 2, keepdim=True, out=b2.grad)
        torch.bmm(error.transpose(1, 2), w2, out=back).mul_(hidden > 0)
        torch.bmm(xb.transpose(1, 2), back, out=w1.grad)
        torch.sum(back, 1, keepdim=True, out=b1.grad)
        optimizer.step()
    return Networks([w1, b1, w2.transpose(1, 2).contiguous(), b2.transpose(1, 2).contiguous()])
