"""Ray: connect to an existing cluster, or start one on this machine for the length of a run.

Ray is imported only by this module, and only when it is asked for. All machines must see the same files under the same
paths and have the same version of this package.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from expunge.system.errors import ConfigError, ExpungeError
from expunge.system.processors import cores
from expunge.system.progress import log_message

STARTS = 3


def ray_module(asked: str = "extract.engine is ray") -> Any:
    """Import Ray, without its usage statistics, and return it.

    `asked`: what asks for Ray, for the ConfigError that is raised if Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise ConfigError(f"{asked}, but Ray is not installed; run pip install 'expunge[ray]'") from None
    return ray


@contextmanager
def cluster(
    ray: Any, address: str | None, workers: int | None, key: str = "extract.address", worker_logs: bool = True
) -> Iterator[None]:
    """Connect to the cluster at `address`; without one, start a cluster on this machine.

    A cluster that is started here has at least `workers` processors. `worker_logs`: whether this process prints what
    workers print. Raises ConfigError if nothing answers at `address`, or if what answers cannot be joined; the message
    begins with `key`, which gave the address.
    """
    if address is None:
        _start_here(ray, max(cores(), workers or 1), worker_logs)
    else:
        check_address(address, key)
        _join(ray, address, key, worker_logs)
    try:
        yield
    finally:
        ray.shutdown()


def get(ray: Any, reference: Any) -> Any:
    """Return a worker's result. An ExpungeError is raised as the worker raised it."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as e:
        if isinstance(e.cause, ExpungeError):
            raise e.cause from None
        raise


def one_each(ray: Any, function: Any, workers: int | None, gpu: bool) -> tuple[Any, int]:
    """Return `function` as a remote function with a GPU or processor of its own, and how many may run at a time.

    Without `workers` there are as many as the cluster has of them. Raises ConfigError if it has too few.
    """
    kind = "GPU" if gpu else "CPU"
    most = int(ray.cluster_resources().get(kind, 0))
    if not 0 < (workers or most) <= most:
        raise ConfigError(
            f"extract.workers: {workers or 1} workers need as many {kind}s, but the cluster has {most}; lower "
            "extract.workers"
        )
    return ray.remote(num_cpus=1, num_gpus=int(gpu))(function), workers or most


def check_address(address: str, key: str = "extract.address", seconds: float = 10.0) -> None:
    """Raise ConfigError if nothing accepts a connection at `address`, host:port, within `seconds`.

    Ray itself would retry for minutes.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=seconds):
            pass
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"{key}: no Ray cluster answers at {address!r} ({e}); give host:port as `ray start` prints it"
        ) from None


def _join(ray: Any, address: str, key: str, worker_logs: bool) -> None:
    """Join the cluster at `address`. Raises ConfigError with what Ray says; Ray tries for half a minute."""
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=worker_logs)
    except ConnectionError as e:
        ray.shutdown()
        raise ConfigError(
            f"{key}: the Ray cluster at {address!r} cannot be joined ({str(e).splitlines()[0]}); check that "
            "its version of Ray is this machine's. `ray start` asks for a token where ~/.ray/auth_token exists: then "
            "give this machine the same file and set RAY_AUTH_MODE=token"
        ) from None


def _start_here(ray: Any, cpus: int, worker_logs: bool) -> None:
    """Start a cluster on this machine, in at most STARTS attempts.

    Ray gives its own processes 30 seconds, which is too short on a busy machine.
    """
    for attempt in range(STARTS):
        try:
            # "local" starts a new cluster instead of joining that of another run on this machine.
            ray.init(
                "local",
                num_cpus=cpus,
                include_dashboard=False,
                logging_level=logging.WARNING,
                log_to_driver=worker_logs,
            )
            return
        except Exception as e:  # Ray raises no more specific class
            ray.shutdown()
            if "timed out" not in str(e) or attempt == STARTS - 1:
                raise
            log_message("Ray took too long to start; trying once more")


def run_tasks(ray: Any, task: Any, jobs: Sequence[Sequence[Any]], limit: int) -> list[Any]:
    """Run the remote function `task` with the arguments of each of `jobs`, at most `limit` at a time.

    Returns their results in the order of `jobs`. An ExpungeError is raised as a worker raised it.
    """
    waiting, running = deque(range(len(jobs))), dict[Any, int]()
    results: list[Any] = [None] * len(jobs)
    while waiting or running:
        while waiting and len(running) < limit:
            number = waiting.popleft()
            running[task.remote(*jobs[number])] = number
        for done in ray.wait(list(running))[0]:
            results[running.pop(done)] = get(ray, done)
    return results
