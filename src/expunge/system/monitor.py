"""Resource use of this process: processor, memory and accelerator memory, sampled in the background.

docs/decisions/0012-resource-monitor.md says why MLflow's own monitor is not used.
"""

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

INTERVAL = 0.5  # seconds between samples at first; doubled whenever there are MOST of them
MOST = 120
FAMILY_SECONDS = 5.0  # how long a list of child processes is reused, because looking through all processes is slow
Series = dict[str, list[float]]


class ResourceMonitor:
    """Samples of resource use from `start()` on. Names follow MLflow's system metrics.

    A long stage keeps as many samples as a short one: at MOST samples, every other one is dropped and the interval
    between samples doubles.
    """

    def __init__(self, interval: float = INTERVAL) -> None:
        self._process = psutil.Process()
        self._family: list[Any] = [self._process]
        self._looked = 0.0
        self._ended = psutil.Error
        self._interval = interval
        self._samples: list[tuple[float, dict[str, float]]] = []
        self._last = (time.monotonic(), self._busy())
        self._lock = threading.Lock()

    def start(self) -> ResourceMonitor:
        """Start the sampling thread, which ends with the process."""
        threading.Thread(target=self._run, name="resource monitor", daemon=True).start()
        return self

    def series(self) -> dict[str, Series]:
        """Return the lists `time` (seconds since 1970) and `value` of each metric.

        The mapping is empty if a stage ended before the first sample.
        """
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
        """Return this process and its descendants, such as workers that read or train."""
        if time.monotonic() - self._looked > FAMILY_SECONDS:
            self._family = [self._process, *self._process.children(recursive=True)]
            self._looked = time.monotonic()
        return self._family

    def _busy(self) -> float:
        """Return the processor seconds used so far, including those of children that have ended."""
        seconds = 0.0
        for process in self._processes():
            try:
                times = process.cpu_times()
            except self._ended:
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
            except self._ended:
                continue
        # 100 is one core, not all of them, so that a reader sees whether a stage uses a second core.
        sample = {
            "cpu_percent_of_one_core": 100 * max(busy - was, 0.0) / (now - then),
            "process_memory_megabytes": memory / 1e6,
        }
        torch = sys.modules.get("torch")  # a stage that has not imported it uses no accelerator memory
        if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
            sample["gpu_memory_megabytes"] = (
                sum(map(torch.cuda.memory_allocated, range(torch.cuda.device_count()))) / 1e6
            )
        return sample


def peak_rss_mb() -> float:
    """Return the largest resident memory of this process so far, in MiB.

    The system reports KiB on Linux, bytes on macOS.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


_running: ResourceMonitor | None = None
_began: tuple[float, float] | None = None  # by the wall clock, and by the one that never jumps


def start() -> None:
    """Start sampling this process; further calls do nothing."""
    global _running, _began
    _began = _began or (time.time(), time.monotonic())
    _running = _running or ResourceMonitor().start()


def write_cost(name: str, cost: Mapping[str, Any]) -> None:
    """Write `reports/cost/NAME.json`: the stage's own measurements, its peak memory, its time and the samples, if any.

    `span` is its start and end in seconds since 1970; a clock that jumps meanwhile does not change its length. The file
    is an output, so a run whose stages come from the cache has it too.
    """
    usage = _running.series() if _running else {}
    began, steady = _began or (time.time(), time.monotonic())
    span = [round(at, 2) for at in (began, began + time.monotonic() - steady)]
    more = {"peak_rss_mb": round(peak_rss_mb(), 1), "span": span, **({"usage": usage} if usage else {})}
    write_json(COST / f"{name}.json", {**cost, **more})
