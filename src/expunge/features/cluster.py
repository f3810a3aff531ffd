"""Extraction with Ray, on an existing cluster or on one that is started on this machine for the run.

All machines must see the same files under the same paths and have the same version of this package. Only shard numbers
and row counts are sent through Ray.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from expunge.data.dataset import Dataset
from expunge.features.extract import Engine, Extraction
from expunge.features.plan import ExtractionSettings, FeatureShard
from expunge.models.checkpoint import load_classifier
from expunge.system.errors import ConfigError, DataError, ManifestError
from expunge.system.malloc import keep_freed
from expunge.system.progress import log_message
from expunge.system.ray_cluster import cluster, get, ray_module

IN_FLIGHT = 2  # shards per worker, so that one is written while the next is computed
MOST_LOSSES = 3  # the run fails when as many workers were lost with the same shard


class Worker:
    """A Ray actor: a process that loads the model once. `make` runs in two threads, of which one computes at a time.

    Raises ManifestError if the plan on this machine has another digest than `digest`.
    """

    def __init__(
        self, model: str, dataset: str, work_root: str, settings: dict[str, Any], digest: str, threads: int
    ) -> None:
        keep_freed()
        self._threads = threads
        torch.set_num_threads(threads)
        self._extraction = Extraction(
            load_classifier(model),
            Dataset(dataset, verify=False),
            Path(work_root),
            ExtractionSettings(**settings),
            threads,
        )
        if self._extraction.plan.digest != digest:
            raise ManifestError(
                f"{model} and {dataset} differ between this machine and the one that started the run; give all "
                "machines the same files and the same version of expunge"
            )
        self._computing = threading.Lock()

    def process(self) -> int:
        """Return the process id; the call succeeds once the worker is ready."""
        return os.getpid()

    def choose(self) -> None:
        """Let the extraction decide whether it compiles the model; see `features.compile`."""
        self._extraction.choose()

    def make(self, index: int) -> int:
        """Make the shard `index` and return its number of rows."""
        shard = self._extraction.plan.shards[index]
        with self._computing:
            torch.set_num_threads(self._threads)  # the setting applies to the calling thread only
            ((_, z, seconds),) = self._extraction.map([shard], lambda rows: None)
        torch.set_num_threads(1)
        self._extraction.writer.write(shard, z, seconds)
        return shard.stop - shard.start


def on_ray(model: Path, dataset: Path, address: str | None, workers: int | None) -> Engine:
    """Return the engine that makes shards with `workers` processes of the Ray cluster at `address`.

    A lost worker is replaced and its shards are made again. Raises ConfigError if Ray is not installed or the cluster
    has too few CPUs or GPUs, and DataError if three workers were lost with the same shard.
    """
    ray = ray_module()

    def engine(extraction: Extraction) -> None:
        todo = deque(extraction.missing())
        if not todo:
            return
        with cluster(ray, address, workers):
            _Cluster(ray, extraction, model, dataset, workers).make(todo)

    return engine


class _Cluster:
    """The workers of one run and the assignment of shards to them."""

    def __init__(self, ray: Any, extraction: Extraction, model: Path, dataset: Path, workers: int | None) -> None:
        self._ray, self._extraction = ray, extraction
        gpu = extraction.settings.device == "cuda"
        has, kind = ray.cluster_resources(), "GPU" if gpu else "CPU"
        most = int(has.get(kind, 0))
        nodes = sum(node["Alive"] for node in ray.nodes())
        self._workers = workers or (most if gpu else min(nodes, most))
        if not 0 < self._workers <= most:
            raise ConfigError(
                f"extract.workers: {self._workers} workers need as many {kind}s, but the cluster has {most}; lower "
                "extract.workers"
            )
        threads = max(1, int(has.get("CPU", 1)) // self._workers)
        self._arguments = (
            str(model.resolve()),
            str(dataset.resolve()),
            str(extraction.work.parent.resolve()),
            asdict(extraction.settings),
            extraction.plan.digest,
            threads,
        )
        options = {"num_cpus": 1, "num_gpus": int(gpu), "max_concurrency": IN_FLIGHT, "scheduling_strategy": "SPREAD"}
        self._remote = ray.remote(**options)(Worker)

    def make(self, todo: deque[FeatureShard]) -> None:
        workers = self._start(min(self._workers, len(todo)))
        if self._extraction.settings.compile == "auto":
            get(self._ray, workers[0].choose.remote())
        free, lost = workers * IN_FLIGHT, Counter[int]()
        running: dict[Any, tuple[Any, FeatureShard]] = {}
        with self._extraction.progress(todo, f"extract, {len(workers)} Ray workers") as advance:
            while todo or running:
                while todo and free:
                    worker, shard = free.pop(0), todo.popleft()
                    running[worker.make.remote(shard.index)] = (worker, shard)
                for done in self._ray.wait(list(running))[0]:
                    worker, shard = running.pop(done)
                    try:
                        advance(get(self._ray, done))
                        free.append(worker)
                    except self._ray.exceptions.RayActorError:
                        self._count_loss(lost, shard)
                        todo.appendleft(shard)
                        if worker in workers:  # only the first of its lost shards replaces the worker
                            self._ray.kill(worker)
                            workers[workers.index(worker)], *_ = replacement = self._start(1)
                            free = [w for w in free if w is not worker] + replacement * IN_FLIGHT

    def _start(self, count: int) -> list[Any]:
        """Start `count` workers and wait until they are ready. Raises ManifestError if one cannot start."""
        workers = [self._remote.remote(*self._arguments) for _ in range(count)]
        try:
            pids = get(self._ray, [worker.process.remote() for worker in workers])
        except self._ray.exceptions.RayActorError as e:
            raise ManifestError(f"a Ray worker could not start: {str(e).strip().splitlines()[-1]}") from None
        log_message(f"extract: Ray workers ready, process {', '.join(map(str, pids))}")
        return workers

    def _count_loss(self, lost: Counter[int], shard: FeatureShard) -> None:
        lost[shard.index] += 1
        if lost[shard.index] == MOST_LOSSES:
            raise DataError(
                f"extract: {MOST_LOSSES} workers were lost while they computed {shard.name}, perhaps for lack of "
                "memory; lower features.batch_size or features.shard_rows"
            )
        log_message(f"extract: warning: a worker was lost; {shard.name} is computed again")
