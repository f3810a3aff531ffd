"""What this process uses while it runs: processor, memory and accelerator memory, sampled in the background."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import psutil

from expunge.system.files import write_json
from expunge.system.paths import COST

INTERVAL = 0.5  # seconds between samples at first; doubled whenever there are too many
MOST = 120
FAMILY_SECONDS = 5.0  # how long a list of child processes is good for: looking through all processes takes a while
Series = dict[str, list[float]]


class Usage:
    """Samples from `start()` on. Names follow MLflow's system metrics.

    A long stage keeps as many samples as a short one: when there are 120, every other one goes and the pause doubles.
    """

    def __init__(self, interval: float = INTERVAL) -> None:
        self._process = psutil.Process()
        self._family: list[Any] = [self._process]
        self._looked = 0.0
        self._gone = psutil.Error
        self._interval = interval
        self._samples: list[tuple[float, dict[str, float]]] = []
        self._last = (time.monotonic(), self._busy())
        self._lock = threading.Lock()

    def start(self) -> Usage:
        """Begin; the thread ends with the process."""
        threading.Thread(target=self._run, name="usage", daemon=True).start()
        return self

    def series(self) -> dict[str, Series]:
        """Per metric `time`, seconds since 1970, and `value`, equally long; empty for a stage that was over at once."""
        with self._lock:
            samples = list(self._samples)
        names = sorted({name for _, values in samples for name in values})
        return {
            name: {
                "time": [round(at, 2) for at, values in samples if name in values],
                "value": [round(values[name], 1) for _, values in samples if name in values],
            }
            for name in names
        }

    def _run(self) -> None:
        while True:
            time.sleep(self._interval)
            sample = (time.time(), self._sample())
            with self._lock:
                self._samples.append(sample)
                if len(self._samples) >= MOST:
                    self._samples = self._samples[1::2]
                    self._interval *= 2

    def _processes(self) -> list[Any]:
        """This process and those it started, such as workers that read or train."""
        if time.monotonic() - self._looked > FAMILY_SECONDS:
            self._family = [self._process, *self._process.children(recursive=True)]
            self._looked = time.monotonic()
        return self._family

    def _busy(self) -> float:
        """Processor seconds so far, of children that have ended too."""
        seconds = 0.0
        for process in self._processes():
            try:
                times = process.cpu_times()
            except self._gone:
                continue
            ended = times.children_user + times.children_system if process is self._process else 0.0
            seconds += times.user + times.system + ended
        return seconds

    def _sample(self) -> dict[str, float]:
        now, busy = time.monotonic(), self._busy()
        (then, was), self._last = self._last, (now, busy)
        memory = 0
        for process in self._processes():
            try:
                memory += process.memory_info().rss
            except self._gone:
                continue
        # 100 is one core: whether a stage uses the second one is what a reader wants to see.
        sample = {
            "cpu_percent_of_one_core": 100 * max(busy - was, 0.0) / (now - then),
            "process_memory_megabytes": memory / 1e6,
        }
        torch = sys.modules.get("torch")  # a stage that has not imported it has nothing on an accelerator
        if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
            sample["gpu_memory_megabytes"] = (
                sum(map(torch.cuda.memory_allocated, range(torch.cuda.device_count()))) / 1e6
            )
        return sample


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MiB; Linux counts KiB, macOS bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


_running: Usage | None = None


def start() -> None:
    """Begin to sample this process, once."""
    global _running
    _running = _running or Usage().start()


def write_cost(name: str, cost: Mapping[str, Any]) -> None:
    """`reports/cost/NAME.json`: what a stage measured of itself, its peak memory, and, where it took long, its samples.
    They are an output, so a run whose stages come from the cache has them too."""
    usage = _running.series() if _running else {}
    more = {"peak_rss_mb": round(peak_rss_mb(), 1), **({"usage": usage} if usage else {})}
    write_json(COST / f"{name}.json", {**cost, **more})
