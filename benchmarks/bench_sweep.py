"""What a sweep costs: 1,000 rows out of 60,000 pictures and features, against writing the dataset anew without them.

python -m benchmarks.bench_sweep
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from expunge.core import Moments
from expunge.data.dataset import Dataset
from expunge.data.schema import RAW
from expunge.data.source import Source, array_batches
from expunge.data.writer import write_dataset
from expunge.features.store import CLASS_SUMS, MOMENTS, write_shard
from expunge.sweep import sweep
from expunge.system.files import staged_dir, write_manifest

ROWS, SHARD, DIM, ERASED, CLASSES = 60_000, 4_096, 128, 1_000, 10
PARAMS = Path(__file__).parents[1] / "params.yaml"


def run() -> dict[str, Any]:
    """Seconds and shards written: neighbouring rows (a person, a day), rows spread over all shards, and the rewrite."""
    results = {}
    with tempfile.TemporaryDirectory() as tmp:
        os.environ["PREFECT_HOME"] = str(Path(tmp) / "prefect")
        spread = np.random.default_rng(3).choice(ROWS, ERASED, replace=False)
        for name, rows in (("neighbours", np.arange(30_000, 30_000 + ERASED)), ("spread", np.sort(spread))):
            results[name] = measure(lay_out(Path(tmp) / name), [f"row-{i:05d}" for i in rows.tolist()])
        source, start, cpu = pictures(), time.perf_counter(), time.process_time()
        write_dataset(Path(tmp) / "anew", source, shard_rows=SHARD)
        seconds = {"seconds": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
        results["dataset alone, written anew"] = {**seconds, "shards": -(-ROWS // SHARD)}
    table = Table("1,000 of 60,000 rows", "s", "CPU s", "shards written", title="Sweep, dataset and feature store")
    for name, found in results.items():
        table.add_row(name, f"{found['seconds']:.2f}", f"{found['cpu_s']:.2f}", str(found["shards"]))
    Console().print(table)
    return {"rows": ROWS, "erased": ERASED, "shard_rows": SHARD, "results": results}


def pictures() -> Source:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (ROWS, 28, 28, 1), dtype=np.uint8)
    ids = [f"row-{i:05d}" for i in range(ROWS)]
    splits = ["test" if i % 7 == 6 else "train" for i in range(ROWS)]
    batches = array_batches(images, np.arange(ROWS, dtype=np.int32) % CLASSES, splits, ids)
    return Source("noise", tuple(map(str, range(CLASSES))), RAW, batches)


def lay_out(root: Path) -> Path:
    """A dataset and a feature store; no DVC, whose cost depends on its remotes."""
    root.mkdir()
    (root / "params.yaml").write_text(PARAMS.read_text(encoding="utf-8"), encoding="utf-8")
    write_dataset(root / "data/dataset", pictures(), shard_rows=SHARD)
    dataset = Dataset(root / "data/dataset", verify=False)
    rows, train = dataset.table(["sample_id", "label", "split"]), dataset.splits() == "train"
    z = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float32)
    labels = torch.from_numpy(dataset.labels()[train].astype(np.int64))
    with staged_dir(root / "data/features/original") as out:
        counted = {}
        for n, start in enumerate(range(0, ROWS, SHARD)):
            part = rows.slice(start, SHARD)
            write_shard(out / f"part-{n:05d}.parquet", part, z[start : start + SHARD])
            counted[f"part-{n:05d}.parquet"] = len(part)
        Moments.of(z[train]).save(out / MOMENTS)
        sums = torch.zeros(CLASSES, DIM, dtype=torch.float64)
        sums.index_add_(0, labels, torch.from_numpy(z[train]).double())
        save_file({"sums": sums, "counts": torch.bincount(labels, minlength=CLASSES)}, out / CLASS_SUMS)
        write_manifest(
            out, "bench", rows=counted, dim=DIM, dtype="float32", model_digest="sha256:m", dataset_digest=dataset.digest
        )
    return root


def measure(root: Path, ids: list[str]) -> dict[str, float]:
    def inodes() -> dict[Path, int]:
        return {p: p.stat().st_ino for p in sorted((root / "data").rglob("part-*.parquet"))}

    before, start, cpu = inodes(), time.perf_counter(), time.process_time()
    report = sweep(root, ids, apply=True)
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    assert report.clean
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "shards": sum(inode != before.get(path) for path, inode in inodes().items()),
    }


if __name__ == "__main__":
    run()
