"""How the time and memory of a request grow with rows, with the dimension of the features, and with classes.

python -m benchmarks.bench_scale            (the two smaller sizes of each)
python -m benchmarks.bench_scale --full     (all sizes: 3 GB of disk below TMPDIR, ten minutes)
python -m benchmarks.bench_scale --page     (all sizes, and writes the table and the figure of docs/scale.md)

Every case runs in a process of its own, so that its peak memory is its own. The features are drawn. Memory is sampled
without the pages of mapped files, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.core_features import features
from benchmarks.page import DOCS, write_section
from expunge.core import FeatureMap, Leace, Loft, Moments, RepresentationLinear, RidgeHead
from expunge.evaluation.rows import measured_rows
from expunge.evaluation.suite import evaluate
from expunge.features.store import Shards, write_shard
from expunge.methods.outputs import StoredOutputs
from expunge.report.tables import markdown_table
from expunge.stages.evaluate import write_logits

SHARD = 65_536
CASES: dict[str, list[dict[str, int]]] = {
    "rows": [{"rows": rows, "dim": 128, "classes": 10} for rows in (60_000, 600_000, 6_000_000)],
    "dimension": [{"rows": 20_000, "dim": dim, "classes": 10} for dim in (128, 512, 1024, 2048, 4096)],
    "classes": [{"rows": 60_000, "dim": 1280, "classes": classes} for classes in (10, 100, 1000)],
}
COSTS = ("write", "moments", "loft", "ru-linear", "leace", "map", "ridge", "evaluate")


class PeakMemory:
    """Samples the bytes that this process holds, without mapped files, every 10 ms from construction on."""

    def __init__(self) -> None:
        self.peak = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        process = psutil.Process()
        while True:
            info = process.memory_info()
            self.peak = max(self.peak, info.rss - getattr(info, "shared", 0))
            time.sleep(0.01)


def measure(rows: int, dim: int, classes: int) -> dict[str, float]:
    """Processor seconds of every step for a store of `rows`, and the peak memory of the process in MiB."""
    memory = PeakMemory()
    z, labels, _ = features(min(rows, SHARD), dim, classes=classes)
    values, found = z.numpy(), dict[str, float]()

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = call()
        found[name] = time.process_time() - began
        return result

    with tempfile.TemporaryDirectory() as tmp:
        paths = timed("write", lambda: write(Path(tmp), values, labels.numpy(), rows))
        store = Shards(paths, dim)
        retain, forget = timed("moments", lambda: moments(store, dim))
        loft = timed("loft", lambda: Loft(min(9, dim - 1)).fit(retain, forget)).map_
        timed("ru-linear", lambda: RepresentationLinear(max_distortion=None).fit(retain, forget))
        timed("leace", lambda: Leace().fit(retain, forget))
        timed("map", lambda: applied(store, loft))
        timed("ridge", lambda: RidgeHead(ridge=1.0).fit(z, labels, classes))
        timed("evaluate", lambda: evaluated(store, z, labels, loft, Path(tmp)))
    return found | {"peak_mib": memory.peak / 2**20}


def write(directory: Path, z: np.ndarray, labels: np.ndarray, rows: int) -> list[Path]:
    """Write shards of `rows` rows in all, each with the same features and ids of its own."""
    paths = []
    for first in range(0, rows, SHARD):
        n = min(SHARD, rows - first)
        table = pa.table({
            "sample_id": [f"{i:09d}" for i in range(first, first + n)],
            "label": pa.array(labels[:n], pa.int32()),
            "split": ["train"] * n,
        })  # fmt: skip
        paths.append(directory / f"part-{first // SHARD:05d}.parquet")
        write_shard(paths[-1], table, z[:n])
    return paths


def moments(store: Shards, dim: int) -> tuple[Moments, Moments]:
    """Moments of the rows of class 0, which go, and of all others, in one pass over the store."""
    retain, forget, labels = Moments(dim), Moments(dim), store.column("label")
    for first, part in store.iter_z():
        goes = labels[first : first + len(part)] == 0
        retain.update(part[~goes])
        forget.update(part[goes])
    return retain, forget


def applied(store: Shards, map_: FeatureMap) -> int:
    """Apply a map to every row, part by part, as extraction and serving do; return the number of rows."""
    return sum(len(map_(torch.from_numpy(part.copy()))) for _, part in store.iter_z())


def run(cases: dict[str, list[dict[str, int]]] | None = None) -> dict[str, Any]:
    """Measure `cases`; None stands for the two smaller sizes of each axis."""
    chosen = cases or {axis: sizes[:2] for axis, sizes in CASES.items()}
    results: dict[str, Any] = {"threads": torch.get_num_threads()}
    for axis, sizes in chosen.items():
        results[axis] = [size | in_own_process(size) for size in sizes]
        table = Table("rows", "d", "classes", *COSTS, "peak MiB", title=f"Processor seconds, by {axis}")
        for r in results[axis]:
            table.add_row(*cells(r))
        Console().print(table)
    return results


def evaluated(store: Shards, z: torch.Tensor, labels: torch.Tensor, map_: FeatureMap, directory: Path) -> None:
    """Evaluate a map as the stage does: metrics of the drawn rows, and the logits of every row into a Parquet file."""
    few, classes = slice(20_000), int(labels.max()) + 1
    y, keep = store.column("label"), labels[few] > 0
    original, retrained = RidgeHead(ridge=1.0), RidgeHead(ridge=1.0)
    original.fit(z[few], labels[few], classes)
    retrained.fit(z[few][keep], labels[few][keep], classes)
    part = np.where(np.arange(len(y)) % 7 < 6, np.where(y == 0, "forget", "retain"), "")
    part = np.where(part == "", np.where(y == 0, "test_forget", "test_retain"), part)
    rows = np.flatnonzero(measured_rows(part, np.ones(len(y), bool), 0))
    heads = [StoredOutputs(store, head.head_.logits) for head in (original, retrained)]
    mapped = StoredOutputs(store, lambda x: original.head_.logits(map_(x)), map_)
    before, reference = (head.at(rows) for head in heads)
    evaluate(mapped.at(rows), before, [reference], y[rows], part[rows])
    write_logits(directory / "logits.parquet", mapped.parts(), {"part": part, "label": y})


def cells(r: dict[str, float]) -> list[str]:
    costs = [f"{r[cost]:.3g}" for cost in COSTS]
    return [f"{r['rows']:,}", f"{r['dim']:.0f}", f"{r['classes']:.0f}", *costs, f"{r['peak_mib']:,.0f}"]


def in_own_process(size: dict[str, int]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bench_scale", "--case", json.dumps(size)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(answer.splitlines()[-1])
    return found


def write_page(results: dict[str, Any]) -> None:
    """Write the tables and the figure of docs/scale.md."""
    head, lines = ["rows", "d", "classes", *COSTS, "peak memory, MiB"], []
    for axis in CASES:
        rows = [cells(r) for r in results[axis]]
        lines += [f"By {axis}:", "", markdown_table(head, rows), ""]
    write_section(DOCS / "scale.md", "scale", lines[:-1])
    plot(results, DOCS / "images" / "scale.png")


def plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharey=True)
    for axis, (name, key) in zip(axes, (("rows", "rows"), ("dimension", "dim"), ("classes", "classes")), strict=True):
        for cost in COSTS:
            axis.loglog([r[key] for r in results[name]], [r[cost] for r in results[name]], "o-", label=cost)
        axis.set_xlabel(name)
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("processor seconds")
    axes[2].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_scale", description=__doc__)
    parser.add_argument("--full", action="store_true", help="all sizes")
    parser.add_argument("--page", action="store_true", help="write docs/scale.md; implies --full")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(**arguments.case)))
        return
    results = run(CASES if arguments.full or arguments.page else None)
    if arguments.page:
        write_page(results)


if __name__ == "__main__":
    main()
