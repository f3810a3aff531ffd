"""LOFT's exact solver against 100 steps of the published one: time and objective, from the same moments.

python -m benchmarks.bench_loft
"""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.core_features import features, median_seconds
from expunge.core import Loft, Moments

CASES = [(128, 9), (128, 100), (1280, 9), (1280, 100), (1280, 400)]
STEPS = 100


def run() -> dict[str, Any]:
    """One row a case; `ratio` is exact time / published time. Targets: 1/20 at d = 128, 1/10 at d = 1280."""
    Loft(2, solver="riemannian-adam", steps=1).fit(*_moments(16)[:2])  # geoopt's import is not timed
    rows = []
    for dim in sorted({d for d, _ in CASES}):
        retain, forget, source = _moments(dim)
        for rank in [s for d, s in CASES if d == dim]:
            rows.append(case(retain, forget, rank) | {"features": source})
    table = Table("d", "s", "exact ms", "published ms", "ratio", "exact objective", "published", "gap", title="LOFT")
    for r in rows:
        times = (f"{1e3 * r['exact_s']:.1f}", f"{1e3 * r['published_s']:.0f}", f"1/{1 / r['ratio']:.0f}")
        values = (f"{r['exact_objective']:.6g}", f"{r['published_objective']:.6g}", f"{r['gap']:.1e}")
        table.add_row(str(r["dim"]), str(r["rank"]), *times, *values)
    Console().print(table)
    return {"threads": torch.get_num_threads(), "steps": STEPS, "cases": rows}


def case(retain: Moments, forget: Moments, rank: int) -> dict[str, Any]:
    exact, published = Loft(rank), Loft(rank, solver="riemannian-adam", steps=STEPS, lr=1.0)
    exact.fit(retain, forget)
    exact_s = median_seconds(lambda: exact.fit(retain, forget), 9 if retain.dim < 500 else 3)
    published_s = median_seconds(lambda: published.fit(retain, forget), 3 if retain.dim < 500 else 1)
    return {
        "dim": retain.dim,
        "rank": rank,
        "exact_s": exact_s,
        "published_s": published_s,
        "ratio": exact_s / published_s,
        "exact_objective": exact.objective_,
        "published_objective": published.objective_,
        "gap": exact.gap_,
    }


def _moments(dim: int) -> tuple[Moments, Moments, str]:
    z, labels, source = features(20_000, dim)
    return Moments.of(z[labels != 5]), Moments.of(z[labels == 5]), source


if __name__ == "__main__":
    run()
