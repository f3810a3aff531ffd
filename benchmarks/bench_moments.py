"""Moments against the bare product `z.T @ z` in float64.

python -m benchmarks.bench_moments
"""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.core_features import features, median_seconds
from expunge.core import Moments


def run() -> dict[str, Any]:
    """Target: 0.8 or more of the bare rate."""
    rates = [rate_case(rows, dim) for rows, dim in ((60_000, 128), (12_000, 1280))]
    table = Table("d", "rows", "update M rows/s", "bare M rows/s", "share", title="Moments: update, z.T @ z in float64")
    for r in rates:
        table.add_row(
            str(r["dim"]), str(r["rows"]), f"{r['rate'] / 1e6:.3f}", f"{r['bare_rate'] / 1e6:.3f}", f"{r['share']:.2f}"
        )
    Console().print(table)
    return {"threads": torch.get_num_threads(), "rates": rates}


def rate_case(rows: int, dim: int) -> dict[str, Any]:
    """The bare product gets float64 rows; the update gets float32 rows, and also checks and sums them."""
    z = features(rows, dim)[0]
    double = z.double()
    moments = Moments(dim)
    update_s, bare_s = [], []
    for _ in range(5):  # side by side, so that both see the same machine
        update_s.append(median_seconds(lambda: moments.update(z), 1))
        bare_s.append(median_seconds(lambda: double.T @ double, 1))
    rate, bare = (rows / float(torch.tensor(s).median()) for s in (update_s, bare_s))
    return {"rows": rows, "dim": dim, "rate": rate, "bare_rate": bare, "share": rate / bare}


if __name__ == "__main__":
    run()
