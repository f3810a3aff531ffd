"""Run stages of one workspace as tasks of a Ray cluster.

All machines must see the workspace under the same path and have the same version of this package. The names of stages
and the lines that they print are all that travels through Ray.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from expunge.system import dvc
from expunge.system.errors import ConfigError
from expunge.system.ray_cluster import get
from expunge.workspaces.side_by_side import THREADS, Here, StageFailedError, threads_given

BUSY = "is busy"  # in DVC's words about a file that another process uses
MOST_WAITS, SECONDS_OF_WAIT = 6, 5
MOST_LOSSES = 3  # the run fails when as many workers were lost with the same stage
SENT = ("DVC_", "EXPUNGE_", "MLFLOW_TRACKING_URI")  # variables of this process that stages on other machines get


def stage_lines(root: Path, threads: int, variables: dict[str, str], stage: str) -> Iterator[str]:
    """Run a stage in a Ray worker and yield what it prints."""
    yield f"runs on {socket.gethostname()}, process {os.getpid()}"
    yield from Here(root, threads, variables).lines(stage)


class OnRay:
    """Runs stages as tasks of the cluster that `ray` has joined, `gpus` GPUs for each. Lost stages are run again."""

    def __init__(self, ray: Any, root: Path, jobs: int, gpus: int) -> None:
        self._ray, self._root, self._stopped = ray, root.resolve(), False
        self.threads = threads_on(ray, jobs)
        self._variables = {name: value for name, value in os.environ.items() if name.startswith(SENT)}
        options = {"num_cpus": self.threads, "num_gpus": gpus, "max_retries": 0, "scheduling_strategy": "SPREAD"}
        self._remote = ray.remote(num_returns="streaming", **options)(stage_lines)
        self._running = set[Any]()

    def lines(self, stage: str) -> Iterator[str]:
        """Run a stage as a task, anew if its worker is lost, and yield what it prints."""
        losses, waits = 0, 0
        while losses < MOST_LOSSES:
            task, is_busy = self._remote.remote(self._root, self.threads, self._variables, stage), False
            self._running.add(task)
            try:
                for reference in task:
                    line = get(self._ray, reference)
                    is_busy = is_busy or BUSY in line
                    yield line
                return
            except StageFailedError:
                # DVC counts the process of a lost worker until the system has removed it, which may take seconds.
                if not (losses and is_busy and waits < MOST_WAITS) or self._stopped:
                    raise
                waits += 1
                yield f"waits {SECONDS_OF_WAIT} s for the processes of the lost worker"
                time.sleep(SECONDS_OF_WAIT)
            except self._ray.exceptions.RayTaskError:
                raise  # a bug
            except self._ray.exceptions.RayError as e:
                if self._stopped:
                    raise StageFailedError(f"{stage} was ended") from None
                losses += 1
                yield f"its worker was lost ({type(e).__name__}), {losses} of at most {MOST_LOSSES} times"
                dvc.set_aside_cut_off(self._root)
            finally:
                self._running.discard(task)
        raise StageFailedError(f"{stage} cost {MOST_LOSSES} workers, perhaps for lack of memory; lower --jobs")

    def stop(self) -> None:
        """End all stages that run."""
        self._stopped = True
        for task in list(self._running):
            self._ray.cancel(task, force=True)


def threads_on(ray: Any, jobs: int) -> int:
    """Return OMP_NUM_THREADS, or an equal share of the cluster's processors, at most those of its smallest machine.

    Raises ConfigError if no machine has as many processors.
    """
    machines = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    share = min([sum(machines) // jobs, *(count for count in machines if count)])
    threads, most = threads_given() or max(1, share), max(machines)
    if threads > most:
        raise ConfigError(f"{THREADS}: no machine of the Ray cluster has {threads} processors; set at most {most}")
    return threads
