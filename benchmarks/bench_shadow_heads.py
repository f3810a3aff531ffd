"""Shadow heads: many heads at once against one after another, same minibatches and steps; and the attacks on them.

python -m benchmarks.bench_shadow_heads
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from expunge.evaluation.shadow_heads import HeadRecipe, ShadowHeads, train_heads, whitening
from expunge.evaluation.ulira import klom, rmia, ulira

CLASSES = 10


def features(rows: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes through a random mixing matrix, overlapping so that a head is about 90 % right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    centres = rng.normal(size=(CLASSES, dim)) * (3.2 / np.sqrt(2 * dim))
    mix = rng.normal(size=(dim, dim)) / np.sqrt(dim)
    return ((centres[labels] + rng.normal(size=(rows, dim))) @ mix).astype(np.float32), labels


def train_one_by_one(z: np.ndarray, labels: np.ndarray, heads: int, seed: int, recipe: HeadRecipe) -> ShadowHeads:
    """The reference: a loop without autograd over each head's own rows in its own order, gathered once per epoch."""
    generator = torch.Generator().manual_seed(seed)
    member = torch.stack([torch.randperm(len(z), generator=generator) < len(z) // 2 for _ in range(heads)])
    fewest = int(member.sum(dim=1).min())
    size = min(recipe.batch // 2, fewest)
    steps = recipe.epochs * (fewest // size)
    centre, unmix = whitening(z)
    x, y = torch.from_numpy(((z - centre) @ unmix).astype(np.float32)), torch.from_numpy(labels)
    weights, biases = torch.zeros(heads, x.shape[1], CLASSES), torch.zeros(heads, CLASSES)
    p, grad, minus = torch.empty(size, CLASSES), torch.empty(x.shape[1], CLASSES), torch.full((size, 1), -1.0)
    for head in range(heads):
        weight, bias, step = weights[head], biases[head], 0
        mine, order = member[head].nonzero()[:, 0].numpy(), np.random.default_rng([seed, head])
        for _ in range(recipe.epochs):
            rows = torch.from_numpy(order.permutation(mine)[:fewest])
            hx, hy = x[rows], y[rows, None]
            for start in range(0, fewest - size + 1, size):
                bx = hx[start : start + size]
                torch.addmm(bias, bx, weight, out=p)
                torch.softmax(p, dim=1, out=p)
                p.scatter_add_(1, hy[start : start + size], minus)
                torch.mm(bx.T, p, out=grad)
                rate = recipe.rate * (1.0 - step / steps)
                weight.mul_(1.0 - rate * recipe.decay).add_(grad, alpha=-rate / size)
                bias.add_(p.sum(dim=0), alpha=-rate / size)
                step += 1
    w = (torch.from_numpy(unmix.astype(np.float32)) @ weights).transpose(1, 2)
    b = biases - w @ torch.from_numpy(centre.astype(np.float32))
    return ShadowHeads(w.contiguous().numpy(), b.numpy(), member.numpy())


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def case(rows: int, dim: int, heads: int, compare: bool) -> dict[str, Any]:
    """Seconds of training and attacks for one size, and of the loop beside it."""
    z, y = features(rows + rows // 6, dim)
    z, y, fresh, fresh_y = z[:rows], y[:rows], z[rows:], y[rows:]
    train_s, found = timed(lambda: train_heads(z, y, heads, saw_forget_data=False, seed=0, classes=CLASSES))
    margins_s, scores = timed(lambda: found.margins(z, y))
    ulira_s, lira = timed(lambda: ulira(scores, found.member))
    rmia_s, ratio = timed(lambda: rmia(found.probabilities(z, y), found.member, found.probabilities(fresh, fresh_y)))
    klom_s, distance = timed(lambda: klom(scores[: heads // 2], scores[heads // 2 :]))
    accuracy = float(np.mean((fresh @ found.weight[0].T + found.bias[0]).argmax(axis=1) == fresh_y))
    seconds = {"train": train_s, "margins": margins_s, "ulira": ulira_s, "rmia": rmia_s, "klom": klom_s}
    result: dict[str, Any] = {
        "rows": rows,
        "dim": dim,
        "heads": heads,
        "seconds": seconds,
        "total_s": sum(seconds.values()),
        "head_accuracy": accuracy,
        "ulira": lira,
        "rmia": ratio,
        "klom_halves": distance,
    }
    if compare:
        loop_s, loop = timed(lambda: train_one_by_one(z, y, heads, 0, HeadRecipe()))
        result |= {
            "loop_s": loop_s,
            "speedup": loop_s / train_s,
            "largest_margin_difference": float(np.abs(loop.margins(z[:1000], y[:1000]) - scores[:, :1000]).max()),
        }
    return result


def run(small: bool = False) -> dict[str, Any]:
    """All cases; `small` shrinks them to seconds. `speedup` is loop / at once, `total_s` includes the attacks.

    Targets: 256 heads on 60,000 x 128 in 8 s, attacks included; speedup at least 2.
    """
    scale = 10 if small else 1
    cases = {
        "shadow_heads_d128": case(60_000 // scale, 128, 256 // scale, compare=True),
        "shadow_heads_d1280": case(60_000 // scale, 1280, 64 // scale, compare=not small),
    }
    table = Table("heads", "rows x d", "train s", "attacks s", "total s", "loop s", "speedup", title="Shadow heads")
    for c in cases.values():
        train, total = c["seconds"]["train"], c["total_s"]
        loop = (f"{c['loop_s']:.1f}", f"{c['speedup']:.1f}") if "loop_s" in c else ("", "")
        size = f"{c['rows']:,} x {c['dim']:,}"
        table.add_row(str(c["heads"]), size, f"{train:.1f}", f"{total - train:.1f}", f"{total:.1f}", *loop)
    Console().print(table)
    return {"threads": torch.get_num_threads(), **cases}


if __name__ == "__main__":
    run()
