"""`train.engine: torchrun`: train all weights in several processes, which are restarted when one is killed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from expunge.config import Config
from expunge.data.dataset import Dataset
from expunge.models.classifier import Classifier
from expunge.system.errors import DataError, ExpungeError
from expunge.system.files import read_json, write_json
from expunge.system.processors import cores
from expunge.system.progress import log_message

JOB, ROWS, LABELS, TRAINED, RESULT = "job.json", "rows.npy", "labels.npy", "trained.safetensors", "result.json"
RESTARTS = 3


def train_with_torchrun(
    config: Config, classifier: Classifier, dataset: Dataset, rows: np.ndarray, seed: int, work: Path
) -> list[dict[str, float]]:
    """Train `classifier` in place as `training.trainer.train` does, with `train.workers` processes on this machine.

    The processes share files in `work`, including the state after the last epoch. When a process dies, all of them are
    started again from that state, at most RESTARTS times. Each time a new torchrun starts them: processes that torchrun
    restarts itself may wait forever for addresses of the old ones (gloo, torch 2.13). Raises DataError for what
    training refuses, and ExpungeError if processes keep dying.
    """
    work.mkdir(parents=True, exist_ok=True)
    for name in (TRAINED, RESULT):
        (work / name).unlink(missing_ok=True)
    np.save(work / ROWS, np.asarray(rows, dtype=np.int64))
    np.save(work / LABELS, dataset.labels())
    write_json(
        work / JOB,
        {"config": dataclasses.asdict(config), "dataset": str(dataset.directory.resolve()), "seed": seed},
    )
    workers = config.train.workers or 2
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}",
        "--max-restarts=0", "--monitor-interval=0.5", "-m", "expunge.training.worker", str(work),
    ]  # fmt: skip
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // workers))
    for restarts in range(RESTARTS + 1):
        ended = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": threads})
        if (work / RESULT).is_file():
            break
        log_message(
            f"train: a process ended with exit status {ended.returncode} after {restarts} of {RESTARTS} restarts"
        )
    else:
        raise ExpungeError(
            f"train: torchrun failed after {RESTARTS} restarts with exit status {ended.returncode}; read its output "
            "above, or set train.engine: local to train in one process"
        )
    result: dict[str, Any] = read_json(work / RESULT)
    if result["refused"]:
        raise DataError(result["refused"])
    classifier.load_state_dict(load_file(work / TRAINED))
    classifier.eval()
    history: list[dict[str, float]] = result["history"]
    return history
