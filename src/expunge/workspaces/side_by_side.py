"""Run stages of one workspace side by side, each as a `dvc repro` of its own.

DVC says which stages there are, what they depend on and which are stale, and every `dvc repro` writes its own entry
into dvc.lock. DVC holds the lock of the workspace while it compares files and writes, not while a command runs.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Protocol

from expunge.system import dvc
from expunge.system.errors import ExpungeError
from expunge.system.processes import started, terminate
from expunge.system.processors import cores
from expunge.workspaces.running import Display

THREADS = "OMP_NUM_THREADS"


class StageFailedError(ExpungeError):
    """`dvc repro` of one stage ended with a status other than 0."""


class Engine(Protocol):
    """Where stages run, with how many threads each."""

    threads: int

    def lines(self, stage: str) -> Iterator[str]:
        """Run a stage and yield what it prints. Raises StageFailedError at its end if it failed."""
        ...

    def stop(self) -> None:
        """End all stages that run."""
        ...


class Here:
    """Runs stages as processes of this machine, with `threads` threads each and `variables` in their environment.

    `force`: run them even if nothing changed.
    """

    def __init__(
        self, root: Path, threads: int, variables: Mapping[str, str] | None = None, force: bool = False
    ) -> None:
        self.threads, self._root, self._running = threads, root, set[subprocess.Popen[str]]()
        self._options = ["--single-item", *["--force"] * force]
        self._environment = dvc.environment(**{**(variables or {}), THREADS: str(threads), "PYTHONUNBUFFERED": "1"})
        self._stopped = False

    def lines(self, stage: str) -> Iterator[str]:
        """Run `dvc repro` of a stage, and yield what it prints without DVC's hints."""
        # Without --wait-for-lock, DVC drops the result of a stage if others hold the lock for 3 seconds as it ends.
        command = dvc.command("--wait-for-lock", "repro", *self._options, stage)
        with started(command, self._root, self._environment) as process:
            self._running.add(process)
            try:
                if self._stopped:
                    terminate(process)
                yield from dvc.lines_of(process)
                status = process.wait()
            finally:
                self._running.discard(process)
        if status != 0:
            raise StageFailedError(f"{stage} exited with status {status}")

    def stop(self) -> None:
        """End all stages that run, and those that are about to."""
        self._stopped = True
        for process in list(self._running):
            terminate(process)


def threads_for(jobs: int) -> int:
    """Return OMP_NUM_THREADS, or without it an equal share of this machine's cores for each of `jobs` stages."""
    return threads_given() or max(1, cores() // jobs)


def threads_given() -> int | None:
    """Return OMP_NUM_THREADS, or None if it is not set to a number above 0."""
    given = os.environ.get(THREADS, "")
    return int(given) or None if given.isdecimal() else None


def reproduce(root: Path, targets: Sequence[str], jobs: int, engine: Engine) -> None:
    """Bring `targets`, all stages if there are none, up to date with at most `jobs` stages at a time.

    A plain `dvc repro` at the end confirms that nothing is stale. If a stage fails, those that run come to their end,
    and no others start. Raises ExpungeError that names what failed.
    """
    dvc.set_aside_cut_off(root)
    plan = dvc.query("plan", root, targets=targets)
    with Display(len(plan["needs"])) as display:
        failed = _run(plan["needs"], set(plan["stale"]), jobs, engine, display)
    again = " ".join(["expunge repro", *targets])
    if failed:
        raise ExpungeError(
            f"failed: {', '.join(failed)}; the lines above say why. What the other stages wrote is kept: correct the "
            f"cause and run `{again}` again, which runs only what is missing"
        )
    if not dvc.reproduce("--quiet", *targets, root=root, **{THREADS: str(engine.threads)}):
        raise ExpungeError(f"dvc repro failed at the end; the lines above say why. Run `{again}` again")


def _run(needs: Mapping[str, Sequence[str]], stale: set[str], jobs: int, engine: Engine, display: Display) -> list[str]:
    """Run what is stale, or depends on what was run, and return the stages that failed.

    `dvc repro` of a stage that only depends on one that was run ends at once if the files are the same as before.
    """
    order = {name: place for place, name in enumerate(needs)}
    sorter = TopologicalSorter(needs)
    sorter.prepare()
    ready: list[str] = []
    running: dict[Future[None], str] = {}
    ran, failed = set[str](), list[str]()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while sorter.is_active() and not (failed and not running):
                ready = sorted([*ready, *sorter.get_ready()], key=order.__getitem__)
                for name in [name for name in ready if name not in stale and ran.isdisjoint(needs[name])]:
                    ready.remove(name)
                    display.skipped(name)
                    sorter.done(name)
                while ready and len(running) < jobs and not failed:
                    name = ready.pop(0)
                    ran.add(name)
                    display.starts(name)
                    running[pool.submit(_follow, name, engine, display)] = name
                for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                    name = running.pop(future)
                    try:
                        future.result()
                        sorter.done(name)
                        display.done(name)
                    except ExpungeError as e:
                        display.failed(name, str(e))
                        failed.append(name)
        except BaseException:  # Ctrl-C, for example: the pool would wait for its stages
            engine.stop()
            raise
    return failed


def _follow(name: str, engine: Engine, display: Display) -> None:
    for line in engine.lines(name):
        display.line(name, line)
