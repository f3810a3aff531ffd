"""`train.engine: ray`: Ray Train's TorchTrainer runs the processes of a training on a cluster.

All machines must see the same files under the same paths and have the same version of this package. The processes and
what they compute are those of torchrun; Ray places them, starts all of them again when one is lost, and sets up torch's
process group.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch

from expunge.system.errors import ConfigError, ExpungeError
from expunge.system.processors import cores
from expunge.system.progress import FORMAT_VARIABLE
from expunge.system.ray_cluster import cluster, ray_module
from expunge.training.job import RESTARTS, run_job

LOG = "log.txt"  # what the first process prints, in the folder of the job
SECONDS_BETWEEN_READS = 0.5
PATIENCE = 1800  # seconds that a process waits for the slowest one


def run_on_ray(work: Path, address: str | None, workers: int | None) -> None:
    """Run the job in `work`, an absolute path, with `workers` processes of the Ray cluster at `address`.

    `address` None starts a cluster on this machine. `workers` None is one per GPU, or one per machine where the cluster
    has none. Raises ConfigError if Ray is not installed or the cluster has too few processors or GPUs, and ExpungeError
    if processes keep dying.
    """
    ray = ray_module("train.engine is ray")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # Ray Train would print every line a second time
    with cluster(ray, address, workers, worker_logs=False):
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        gpu, count = _placed(ray, workers)
        trainer = TorchTrainer(
            _process,
            train_loop_config={
                "work": str(work),
                "folder": str(Path.cwd()),
                "threads": int(os.environ.get("OMP_NUM_THREADS", 0)),
                "progress": os.environ.get(FORMAT_VARIABLE),
            },
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=PATIENCE),
            scaling_config=ScalingConfig(num_workers=count, use_gpu=gpu, placement_strategy="SPREAD"),
            run_config=RunConfig(
                name="train", storage_path=str(work / "ray"), failure_config=FailureConfig(max_failures=RESTARTS)
            ),
        )
        (work / LOG).unlink(missing_ok=True)
        try:
            with _printed(work / LOG):
                trainer.fit()
        except TrainingFailedError as e:
            last = str(e).strip().splitlines()[-1]
            raise ExpungeError(
                f"train: Ray Train failed after {RESTARTS} restarts: {last}; read {work / LOG}, or set train.engine: "
                "local to train in one process"
            ) from None


def _placed(ray: Any, workers: int | None) -> tuple[bool, int]:
    """Return whether the processes use GPUs, and how many processes there are."""
    has = ray.cluster_resources()
    gpus = int(has.get("GPU", 0))
    kind, most = ("GPU", gpus) if gpus else ("CPU", int(has.get("CPU", 0)))
    count = workers or gpus or sum(node["Alive"] for node in ray.nodes())
    if count > most:
        raise ConfigError(
            f"train.workers: {count} workers need as many {kind}s, but the cluster has {most}; lower train.workers"
        )
    return gpus > 0, count


def _process(given: dict[str, Any]) -> None:
    """Run the job in a process that Ray has started; the first one prints into LOG."""
    from ray.train import get_context
    from ray.train.torch import get_device

    context = get_context()
    os.chdir(given["folder"])  # paths in params are relative to the workspace
    if given["progress"] is not None:
        os.environ[FORMAT_VARIABLE] = given["progress"]
    torch.set_num_threads(given["threads"] or max(1, cores() // context.get_local_world_size()))
    if torch.cuda.is_available():
        torch.cuda.set_device(get_device())
    work, first = Path(given["work"]), context.get_world_rank() == 0
    with (work / LOG).open("a", buffering=1) if first else nullcontext() as log, redirect_stderr(log or sys.stderr):
        run_job(work)


@contextmanager
def _printed(log: Path) -> Iterator[None]:
    """Copy what is appended to `log` to stderr while the body runs."""
    ended = threading.Event()

    def copy() -> None:
        at = 0
        while True:
            last = ended.is_set()
            if log.is_file():
                with log.open(encoding="utf-8") as file:
                    file.seek(at)
                    sys.stderr.write(file.read())
                    sys.stderr.flush()
                    at = file.tell()
            if last:
                return
            ended.wait(SECONDS_BETWEEN_READS)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
