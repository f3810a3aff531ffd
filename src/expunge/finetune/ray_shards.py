"""`extract.engine: ray`: training of the shards above a cut as tasks of a Ray cluster.

The result equals that of local training bit for bit, because a shard depends only on the public network, the recipe,
its seed and its rows. Activations in a file are passed by its path, which must be readable on all machines; others are
copied once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.finetune.cut import Activations, path_of
from expunge.finetune.shards import Engine, Job, TrainedSteps
from expunge.system.errors import ConfigError
from expunge.system.progress import log_message
from expunge.system.ray_cluster import cluster, get, ray_module


def on_ray(address: str | None, workers: int | None) -> Engine:
    """Return an engine that trains with `workers` processes of the cluster at `address`, each one shard at a time.

    With `workers` None it uses as many as the cluster has processors for. Shards that reuse all steps of an earlier
    training are handled in this process. Every worker uses as many threads as this process, because the order of
    summation affects the bits of the result. Ray replaces a lost worker. Raises ConfigError where Ray is missing or the
    cluster has too few processors.
    """
    ray = ray_module()

    def engine(jobs: Sequence[Job], activations: Activations, labels: NDArray[np.integer]) -> list[TrainedSteps]:
        results: list[TrainedSteps] = [(taken, []) for _, taken in jobs]
        stale = deque(number for number, (shard, taken) in enumerate(jobs) if len(taken) < len(shard.steps))
        if not stale:
            return results
        with cluster(ray, address, workers):
            task, limit = _task(ray, jobs[stale[0]][0].base, workers)
            log_message(f"{len(stale)} shards to train, at most {min(limit, len(stale))} Ray tasks at a time")
            given = ray.put(path_of(activations) or activations), ray.put(np.asarray(labels)), torch.get_num_threads()
            running: dict[Any, int] = {}
            while stale or running:
                while stale and len(running) < limit:
                    number = stale.popleft()
                    running[task.remote(jobs[number], *given)] = number
                for done in ray.wait(list(running))[0]:
                    results[running.pop(done)] = get(ray, done)
        return results

    return engine


def train(job: Job, named: Path | Activations, labels: NDArray[np.integer], threads: int) -> TrainedSteps:
    """Train one shard in a worker."""
    torch.set_num_threads(threads)
    shard, taken = job
    return shard.trained(np.load(named, mmap_mode="r") if isinstance(named, Path) else named, labels, taken)


def _task(ray: Any, base: torch.nn.Module, workers: int | None) -> tuple[Any, int]:
    """Return the remote function, and the number of tasks that run at a time."""
    kind = "GPU" if next(base.parameters()).is_cuda else "CPU"
    most = int(ray.cluster_resources().get(kind, 0))
    if not 0 < (workers or most) <= most:
        raise ConfigError(
            f"extract.workers: {workers or 1} workers need as many {kind}s, but the cluster has {most}; lower "
            "extract.workers"
        )
    return ray.remote(num_cpus=1, num_gpus=int(kind == "GPU"))(train), workers or most
