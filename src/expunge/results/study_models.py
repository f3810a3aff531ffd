"""Many small networks trained at once, for the calibration of the verdict: one hidden layer, batched over models.

All models of a batch take the same number of steps on their own rows in their own order, from their own start, so that
each is what it would be alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """Width of the hidden layer, and how it is trained: Adam with a linear decay of the learning rate to 0."""

    hidden: int
    steps: int
    batch_size: int
    lr: float


@dataclass
class Networks:
    """M networks: `weights` are (M, d, h), (M, 1, h), (M, h, C), (M, 1, C), float32."""

    weights: list[Tensor]

    def __len__(self) -> int:
        return len(self.weights[0])

    def hidden(self, x: Tensor) -> Tensor:
        """What the heads read: x (n, d) or (M, n, d) -> (M, n, h)."""
        w1, b1, _, _ = self.weights
        return torch.relu(torch.matmul(x, w1) + b1)

    def logits(self, x: Tensor) -> Tensor:
        """(M, n, C)."""
        return torch.baddbmm(self.weights[3], self.hidden(x), self.weights[2])

    def one(self, index: int) -> Networks:
        return Networks([w[index : index + 1] for w in self.weights])

    def outputs(self, x: Tensor) -> tuple[Floats32, Floats32]:
        """Logits (n, C) and hidden features (n, h) of the only network."""
        with torch.no_grad():
            z = self.hidden(x)
            return torch.baddbmm(self.weights[3], z, self.weights[2])[0].numpy(), z[0].numpy()


def start(seeds: list[int], dim: int, classes: int, hidden: int) -> Networks:
    """One network per seed, uniform in +-1/sqrt(fan in) as torch.nn.Linear starts."""
    weights: list[list[Tensor]] = [[], [], [], []]
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for i, (shape, fan) in enumerate([((dim, hidden), dim), ((1, hidden), dim), ((hidden, classes), hidden)]):
            weights[i].append((torch.rand(shape, generator=generator) * 2 - 1) / fan**0.5)
        weights[3].append((torch.rand((1, classes), generator=generator) * 2 - 1) / hidden**0.5)
    return Networks([torch.stack(w) for w in weights])


def order_of(rows: NDArray[np.int64], length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`length` row numbers: permutations of `rows`, one after the other."""
    passes = -(-length // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(passes)])[:length]


def train(networks: Networks, x: Tensor, targets: Tensor, orders: Tensor, recipe: Recipe) -> Networks:
    """Train all networks. `x (n, d)`, `targets (M, n)` int64 or `(n,)`, `orders (M, steps * batch)` rows per model."""
    weights = [w.clone().requires_grad_(True) for w in networks.weights]
    trained = Networks(weights)
    optimizer = torch.optim.Adam(weights, lr=recipe.lr, fused=True)
    b, m = recipe.batch_size, len(networks)
    steps = orders.shape[1] // b
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * (1 - step / steps)
        rows = orders[:, step * b : (step + 1) * b]
        y = targets[rows] if targets.ndim == 1 else torch.gather(targets, 1, rows)
        logits = trained.logits(x[rows])
        # A sum over models: each gradient is that of its own model's mean loss.
        loss = torch.nn.functional.cross_entropy(logits.reshape(m * b, -1), y.reshape(-1), reduction="sum") / b
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Networks([w.detach() for w in weights])
