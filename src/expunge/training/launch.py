"""Train all weights in several processes: those of torchrun on this machine, or of Ray Train on a cluster."""

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
from expunge.training.job import JOB, LABELS, RESTARTS, RESULT, ROWS, TRAINED
from expunge.training.on_ray import run_on_ray


def train_in_processes(
    config: Config, classifier: Classifier, dataset: Dataset, rows: np.ndarray, seed: int, work: Path
) -> list[dict[str, float]]:
    """Train `classifier` in place as `training.trainer.train` does, with the processes of `train.engine`.

    The processes share files in `work`, including the state after the last epoch. When a process dies, all of them are
    started again from that state, at most RESTARTS times. Raises DataError for what training refuses, ConfigError where
    the engine cannot run, and ExpungeError if processes keep dying.
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
    if config.train.engine == "ray":
        run_on_ray(work.resolve(), config.extract.address, config.train.workers)
    else:
        run_torchrun(work, config.train.workers or 2)
    result: dict[str, Any] = read_json(work / RESULT)
    if result["refused"]:
        raise DataError(result["refused"])
    classifier.load_state_dict(load_file(work / TRAINED))
    classifier.eval()
    history: list[dict[str, float]] = result["history"]
    return history


def run_torchrun(work: Path, workers: int) -> None:
    """Run the job in `work` with `workers` processes on this machine.

    After a death, a new torchrun starts all processes: processes that torchrun restarts itself may wait forever for
    addresses of the old ones (gloo, torch 2.13). Raises ExpungeError after RESTARTS of them.
    """
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}",
        "--max-restarts=0", "--monitor-interval=0.5", "-m", "expunge.training.worker", str(work),
    ]  # fmt: skip
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // workers))
    for restarts in range(RESTARTS + 1):
        ended = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": threads})
        if (work / RESULT).is_file():
            return
        log_message(
            f"train: a process ended with exit status {ended.returncode} after {restarts} of {RESTARTS} restarts"
        )
    raise ExpungeError(
        f"train: torchrun failed after {RESTARTS} restarts with exit status {ended.returncode}; read its output "
        "above, or set train.engine: local to train in one process"
    )
