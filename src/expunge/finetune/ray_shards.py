"""`extract.engine: ray`: training of the shards above a cut as tasks of a Ray cluster.

The result equals that of local training bit for bit, because a shard depends only on the public network, the recipe,
its seed and its rows. Activations in a file are passed by its path, which must be readable on all machines; others are
copied once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.finetune.cut import Activations, path_of
from expunge.finetune.shards import Engine, Job, TrainedSteps
from expunge.system.progress import log_message
from expunge.system.ray_cluster import cluster, one_each, ray_module, run_tasks


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
        stale = [number for number, (shard, taken) in enumerate(jobs) if len(taken) < len(shard.steps)]
        if not stale:
            return results
        with cluster(ray, address, workers):
            gpu = next(jobs[stale[0]][0].base.parameters()).is_cuda
            task, limit = one_each(ray, train, workers, gpu)
            log_message(f"{len(stale)} shards to train, at most {min(limit, len(stale))} Ray tasks at a time")
            given = ray.put(path_of(activations) or activations), ray.put(np.asarray(labels)), torch.get_num_threads()
            trained = run_tasks(ray, task, [(jobs[number], *given) for number in stale], limit)
        for number, steps in zip(stale, trained, strict=True):
            results[number] = steps
        return results

    return engine


def train(job: Job, named: Path | Activations, labels: NDArray[np.integer], threads: int) -> TrainedSteps:
    """Train one shard in a worker."""
    torch.set_num_threads(threads)
    shard, taken = job
    return shard.trained(np.load(named, mmap_mode="r") if isinstance(named, Path) else named, labels, taken)
