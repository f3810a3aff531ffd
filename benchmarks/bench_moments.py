"""Moments against the bare product `z.T @ z` in float64, and the cost of a request against the number of retained rows.

python -m benchmarks.bench_moments
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.core_features import features, median_seconds
from expunge.core import Moments, RepresentationLinear


def run() -> dict[str, Any]:
    """Targets: 0.8 or more of the bare rate; a request at 600,000 rows in at most 1.2 of the time at 60,000."""
    rates = [rate_case(rows, dim) for rows, dim in ((60_000, 128), (12_000, 1280))]
    requests = request_case(128)
    table = Table("d", "rows", "update M rows/s", "bare M rows/s", "share", title="Moments: update, z.T @ z in float64")
    for r in rates:
        table.add_row(
            str(r["dim"]), str(r["rows"]), f"{r['rate'] / 1e6:.3f}", f"{r['bare_rate'] / 1e6:.3f}", f"{r['share']:.2f}"
        )
    request = Table("rows in all", "request ms", title="A request for 1,000 rows: load total, subtract, fit RU linear")
    for rows, seconds in requests["seconds"].items():
        request.add_row(rows, f"{1e3 * seconds:.2f}")
    Console().print(table, request, f"ratio {requests['ratio']:.2f}")
    return {"threads": torch.get_num_threads(), "rates": rates, "requests": requests}


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


def request_case(dim: int, small: int = 60_000, times: int = 10) -> dict[str, Any]:
    """The total moments were stored by extraction; a request reads them and its own rows, nothing else."""
    z = features(small, dim)[0]
    one = Moments.of(z)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for rows, total in ((small, one), (small * times, Moments.total([one] * times))):
            path = Path(folder) / str(rows)
            total.save(path)

            def request(path: Path = path) -> None:
                forget = Moments.of(z[:1000])
                RepresentationLinear(0.1, max_distortion=None).fit(Moments.load(path) - forget, forget)

            request()
            seconds[str(rows)] = median_seconds(request, 15)
    few, many = seconds.values()
    return {"dim": dim, "forget_rows": 1000, "seconds": seconds, "ratio": many / few}


if __name__ == "__main__":
    run()
