"""Features for the benchmarks of the core: the stored ones of the last run where they fit, else drawn ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

STORE = Path("data/features/original")


def features(rows: int, dim: int, seed: int = 0, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor, str]:
    """`z (rows, dim)` float32, `labels (rows,)`, and where they come from.

    Drawn features have class means in a simplex (collapsed classes) and a spectrum that decays as `k^-1.2` around them.
    """
    stored = _stored(rows, dim)
    if stored is not None:
        return *stored, "stored"
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    scales = torch.arange(1, dim + 1) ** -0.6
    labels = torch.arange(rows) % classes
    means = 3.0 * turn[:, :classes].T + 0.5 * torch.randn(classes, dim, generator=generator) * scales
    # Every class spreads along its own directions as well, as real ones do.
    z = torch.randn(rows, dim, generator=generator) * scales
    for c in range(classes):
        tilt = torch.linalg.qr(torch.eye(dim) + 0.5 * torch.randn(dim, dim, generator=generator) / dim**0.5)[0]
        z[labels == c] = z[labels == c] @ tilt
    return torch.relu(means[labels] + z @ turn + 0.5), labels, "drawn"


def _stored(rows: int, dim: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    shards = sorted(STORE.glob("part-*.parquet"))
    if not shards:
        return None
    table = pq.read_table(shards, columns=["label", "z"])
    z = table["z"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    if z.shape[1] != dim or len(z) < rows:
        return None
    return torch.from_numpy(z[:rows].astype(np.float32)), torch.from_numpy(
        table["label"].to_numpy()[:rows].astype(np.int64)
    )


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Median wall time of `repeats` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))
