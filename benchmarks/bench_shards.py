"""One person out of a model in 8 shards, against training above the cut whole and from nothing in shards.

python -m benchmarks.bench_shards
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from expunge.finetune.above import train_above
from expunge.finetune.relearn import Relearn
from expunge.finetune.shard_assignment import ShardAssignment
from expunge.finetune.shards import EarlierTraining, Trained, earlier_training, train_shards
from expunge.models.cuts import split_at_cut
from expunge.models.zoo import build

NAME, CUT, SIDE, CLASSES = "efficientnet-lite0", "_blocks.10", 64, 9
ROWS, PEOPLE, SHARDS = 2400, 800, 8
TARGET = 1 / 6


def run() -> dict[str, Any]:
    """Measure how long the removal of one person takes with shards, print the figures and return them.

    The target is that one person with 8 shards takes at most 1/6 of the time of training above the cut whole. Times are
    processor seconds of one thread. Activations are noise, because training time does not depend on their values.
    """
    torch.set_num_threads(1)
    model = build(NAME, CLASSES, (SIDE, SIDE, 3), training="above", saw_forget_data=False, seed=1, public=True)
    depth, height, width = split_at_cut(model, CUT).shape()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, ROWS)
    activations = rng.standard_normal((ROWS, height, width, depth)).astype(np.float16)
    recipe = Relearn(
        cut=CUT, epochs=2.0, batch_size=64, lr=0.02, targets="labels", precision="fp32", seed=1, start="public"
    ).get_params()
    people, everybody = np.arange(ROWS) % PEOPLE, np.arange(ROWS)
    whole_s, _ = seconds(lambda: train_above(model, activations, labels, everybody, recipe))
    cases = []
    for shards, slices in ((SHARDS, 1), (SHARDS, 4)):
        fit = partial(train_shards, model, activations, labels, recipe=recipe, places=assigned(people, shards, slices))
        train_s, made = seconds(partial(fit, rows=everybody))
        kept = left_by(made)
        times = [seconds(partial(fit, rows=everybody[people != who], earlier=kept))[0] for who in (3, 77, 400)]
        one = float(np.mean(times))
        cases.append({"shards": shards, "slices": slices, "train_s": train_s, "person_s": one, "ratio": one / whole_s})
    table = Table(*cases[0], title=f"{ROWS:,} rows; training above {CUT} whole: {whole_s:.1f} s")
    for case in cases:
        table.add_row(*(f"{value:.3g}" for value in case.values()))
    Console().print(table)
    ratio = next(c["ratio"] for c in cases if (c["shards"], c["slices"]) == (SHARDS, 1))
    return {"rows": ROWS, "whole_s": whole_s, "cases": cases, "target": TARGET, "met": bool(ratio <= TARGET)}


def assigned(people: np.ndarray, shards: int, slices: int) -> ShardAssignment:
    """As a keyed hash places them, with leaves that stand for rows."""
    drawn = np.random.default_rng(7).integers(0, shards * slices, people.max() + 1)[people]
    leaves = [int(i).to_bytes(20, "big") for i in range(len(people))]
    return ShardAssignment(shards, slices, drawn % shards, drawn // shards, leaves, "benchmark")


def left_by(made: Trained) -> EarlierTraining:
    """What a training left, the last steps and the others."""
    known = earlier_training(made.classifier_, None)
    return EarlierTraining(known.parts, lambda shard, step: made.states.get((shard, step)) or known.state(shard, step))


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of a call, and what it gave."""
    start = time.process_time()
    made = call()
    return time.process_time() - start, made


if __name__ == "__main__":
    run()
