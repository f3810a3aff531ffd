"""Train, or relearn above a cut, in several processes: those of torchrun on this machine, or of Ray Train."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from expunge.config import Config
from expunge.data.dataset import Dataset
from expunge.finetune.cut import Activations, path_of
from expunge.finetune.relearn import Relearn, Relearning
from expunge.models.checkpoint import save_classifier
from expunge.models.classifier import Classifier
from expunge.system import errors
from expunge.system.errors import ExpungeError
from expunge.system.files import read_json, staged_dir, write_json, write_manifest
from expunge.system.processors import cores
from expunge.system.progress import log_message
from expunge.training.job import JOB, LABELS, LOGITS, MODEL, RESTARTS, RESULT, ROWS, TRAINED
from expunge.training.on_ray import run_on_ray

PRODUCER = "expunge.training.launch"
ACTIVATIONS = "activations.npy"  # of activations that are not in a file yet


def train_in_processes(
    config: Config, classifier: Classifier, dataset: Dataset, rows: np.ndarray, seed: int, work: Path
) -> list[dict[str, float]]:
    """Train `classifier` in place as `training.trainer.train` does, with the processes of `train.engine`.

    The processes share files in `work`, including the state after the last epoch. When a process dies, all of them are
    started again from that state, at most RESTARTS times. Raises what training raises, ConfigError where the engine
    cannot run, and ExpungeError if processes keep dying.
    """
    job = {"config": dataclasses.asdict(config), "dataset": str(dataset.directory.resolve()), "seed": seed}
    history = _run(config, work, job, {ROWS: np.asarray(rows, dtype=np.int64), LABELS: dataset.labels()})
    classifier.load_state_dict(load_file(work / TRAINED))
    classifier.eval()
    return history


def relearning_of(config: Config, work: Path) -> Relearning:
    """Return a function that fits a `Relearn` as `Relearn.fit` does, with the processes of `train.engine`.

    The processes share files in `work`, which is deleted after success. When a process dies, all of them start anew, at
    most RESTARTS times. The function raises what `Relearn.fit` raises, ConfigError where the engine cannot run, and
    ExpungeError if processes keep dying.
    """

    def fit(
        relearn: Relearn,
        classifier: Classifier,
        activations: Activations,
        labels: NDArray[np.integer],
        rows: NDArray[np.integer] | None = None,
        logits: Tensor | None = None,
    ) -> Relearn:
        named = path_of(activations) or (work / ACTIVATIONS).resolve()
        job = {"relearn": relearn.get_params(), "activations": str(named), "has_logits": logits is not None}
        arrays = {LABELS: np.asarray(labels), ROWS: np.arange(len(labels)) if rows is None else np.asarray(rows)}
        if logits is not None:
            arrays[LOGITS] = logits.cpu().numpy()
        if path_of(activations) is None:
            arrays[ACTIVATIONS] = activations
        try:
            with staged_dir(work / MODEL) as staging:
                save_classifier(staging, classifier)
                write_manifest(staging, PRODUCER)
            relearn.history_ = _run(config, work, job, arrays)
            relearn.classifier_ = copy.deepcopy(classifier)
            relearn.classifier_.load_state_dict(load_file(work / TRAINED))
        finally:  # the model knows the forgotten rows; after an error, the log of the processes is kept
            shutil.rmtree(work / MODEL, ignore_errors=True)
        shutil.rmtree(work)
        return relearn

    return fit


def _run(
    config: Config, work: Path, job: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> list[dict[str, float]]:
    """Run a job, which finds `arrays` as files in `work`, and return its history. Raises the error that ended it."""
    work.mkdir(parents=True, exist_ok=True)
    for name in (TRAINED, RESULT):
        (work / name).unlink(missing_ok=True)
    for name, array in arrays.items():
        np.save(work / name, array)
    write_json(work / JOB, job)
    if config.train.engine == "ray":
        run_on_ray(work.resolve(), config.extract.address, config.train.workers)
    else:
        run_torchrun(work, config.train.workers or 2)
    result: dict[str, Any] = read_json(work / RESULT)
    if refused := result["refused"]:
        raise getattr(errors, refused["error"], ExpungeError)(refused["message"])
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
