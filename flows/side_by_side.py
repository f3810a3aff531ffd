"""Stages of a flow side by side: Prefect starts each one as soon as all that it depends on have ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import BoundedSemaphore

from prefect.futures import PrefectFuture, wait

from expunge.system import dvc
from expunge.workspaces import side_by_side
from expunge.workspaces.side_by_side import Here, threads_for
from flows.stages import StageFailedError, environment, run_stage


class SideBySide:
    """Runs stages as they are asked for, each as a `dvc repro` of its own; all but `jobs` of them wait."""

    def __init__(self, workspace: Path, jobs: int, force: bool) -> None:
        self._free = BoundedSemaphore(jobs)
        self._here = Here(workspace, threads_for(jobs), environment(workspace), force)

    def lines(self, stage: str) -> Iterator[str]:
        """Run a stage and yield what it prints. Raises StageFailedError at its end if it failed."""
        with self._free:
            try:
                yield from self._here.lines(stage)
            except side_by_side.StageFailedError as e:
                raise StageFailedError(f"failed: {e}") from None


def run_side_by_side(names: Sequence[str], root: Path, jobs: int, force: bool) -> dict[str, str]:
    """Run one task for each of the stages `names`, at most `jobs` at a time. Returns what each of them did.

    If a stage fails, those that do not depend on it are run all the same; then its error is raised.
    """
    needs, engine = dvc.query("plan", root, targets=names)["needs"], SideBySide(root, jobs, force)
    tasks: dict[str, PrefectFuture[str]] = {}
    for name in names:
        before = [tasks[other] for other in ancestors(name, needs) if other in tasks]
        tasks[name] = run_stage.submit(name, engine, wait_for=before, return_state=False)
    wait(list(tasks.values()))
    return {name: task.result() for name, task in tasks.items()}


def ancestors(name: str, needs: Mapping[str, Sequence[str]]) -> set[str]:
    """Return all that `name` depends on, directly or through others. `needs` has what each depends on directly."""
    found, left = set[str](), list(needs.get(name, ()))
    while left:
        if (other := left.pop()) not in found:
            found.add(other)
            left += needs.get(other, ())
    return found
