"""How near relearning comes to its limit: the forward and backward passes of the layers above the cut.

python -m benchmarks.bench_relearn
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from benchmarks.core_features import median_seconds
from expunge.finetune.cut import batch_of, features_of, fetch_activations
from expunge.finetune.initial_weights import fresh_above
from expunge.finetune.relearn import Relearn
from expunge.models.cuts import split_at_cut, uncut
from expunge.models.zoo import build

ROWS, BATCH, CUTS, REPEATS = 16_384, 128, ("stage1", "stage2"), 3


def run(small: bool = False) -> dict[str, Any]:
    """Seconds of one pass of `relearn` with batches of 128 in bf16, and of its parts alone, on the small ResNet.

    `passes`: forward and backward passes on one batch that stays in the cache, as many as the pass has batches. `share`
    is their time by that of the pass. Pictures and labels are drawn; they do not change the work.
    """
    rows = ROWS // 8 if small else ROWS
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (rows, 28, 28), np.uint8)
    labels = rng.integers(0, 10, rows)
    classifier = build("resnet-small", 10, (28, 28, 1), seed=0).eval()
    with tempfile.TemporaryDirectory() as tmp:
        cases = {cut: case(cut, classifier, images, labels, Path(tmp) / f"{cut}.npy") for cut in CUTS}
    table = Table("cut", "one pass, s", "passes alone, s", "share", "rows/s", title=f"Relearning, {rows:,} rows")
    for cut, c in cases.items():
        table.add_row(cut, f"{c['pass_s']:.2f}", f"{c['passes_s']:.2f}", f"{c['share']:.0%}", f"{c['rows_per_s']:,.0f}")
    Console().print(table)
    return {"threads": torch.get_num_threads(), "rows": rows, **cases}


def case(cut: str, classifier: Any, images: np.ndarray, labels: np.ndarray, path: Path) -> dict[str, float]:
    fetch_activations(classifier, images, cut, path)
    activations: Any = np.load(path, mmap_mode="r")
    settings: dict[str, Any] = {"cut": cut, "epochs": 1.0, "batch_size": BATCH, "lr": 0.01, "targets": "labels"}
    Relearn(**settings).fit(classifier, activations[: 4 * BATCH], labels[: 4 * BATCH])  # imports and first calls
    found, bare = [], []
    for _ in range(REPEATS):  # in turns, so that other work on the machine slows both
        found.append(Relearn(**settings).fit(classifier, activations, labels).history_[0]["seconds"])
        bare.append(passes(cut, classifier, activations, labels))
    pass_s, passes_s = float(np.median(found)), float(np.median(bare))
    return {"pass_s": pass_s, "passes_s": passes_s, "share": passes_s / pass_s, "rows_per_s": len(labels) / pass_s}


def passes(cut: str, classifier: Any, activations: Any, labels: np.ndarray) -> float:
    """Seconds of the forward and backward passes alone."""
    traces = split_at_cut(classifier, cut).traces
    split = uncut(fresh_above(classifier, cut, 0), cut, traces)
    split.train_above()
    rows = torch.arange(BATCH)
    given, y = batch_of(split, activations, rows), torch.from_numpy(labels[:BATCH])

    def both() -> None:
        for _ in range(len(labels) // BATCH):
            with torch.autocast("cpu", torch.bfloat16):
                logits = split.classifier.head(features_of(split, given))
            F.cross_entropy(logits.float(), y).backward()  # type: ignore[no-untyped-call]
            for parameter in split.classifier.parameters():
                parameter.grad = None

    return median_seconds(both, 1)


if __name__ == "__main__":
    run()
