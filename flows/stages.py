"""Stages of dvc.yaml as tasks: DVC decides what is stale; Prefect streams output, retries and shows progress."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.tasks import Task, exponential_backoff

from expunge.system import dvc
from expunge.system.preflight import passed
from expunge.system.processes import end, started
from expunge.system.progress import FORMAT_VARIABLE
from flows.progress import Progress, entry_of

# Failures that may be temporary: another process in the workspace, a source to be fetched, a tracking server.
BUSY = "is busy"
CODE = "code"  # the stage whose digests of code the others depend on
REGISTER = "register"
OUTSIDE = ("prepare", REGISTER)
OUTSIDE_TRIES, BUSY_TRIES = 3, 6
TAIL = 40
PIPELINE = "dvc.yaml"
# How DVC begins a stage, or says why it could not.
STAGE_LINE = re.compile(r"(?:Running stage|Stage|ERROR: failed to reproduce) '(?P<name>[^']+)'")
UP_TO_DATE, DONE = "up to date", "done"


class StageFailedError(RuntimeError):
    """A DVC stage exited with a status other than 0; the message ends with its last lines."""


class PreflightError(RuntimeError):
    """The run would fail: params are wrong, or the tracking server cannot be reached. No stage was started."""


def environment(workspace: Path) -> dict[str, str]:
    """Return the environment variables for DVC and the stages.

    `src` of the workspace is first on PYTHONPATH. EXPUNGE_FLOW_RUN tells the stage that logs the run which flow run it
    belongs to.
    """
    own = [str(workspace / "src")] if (workspace / "src" / "expunge").is_dir() else []
    more = {
        **({"EXPUNGE_FLOW_RUN": str(flow_run.id)} if flow_run.id else {}),
        "PYTHONPATH": os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        FORMAT_VARIABLE: "json",
    }
    return dvc.environment(**more)


def expunge(*arguments: str) -> list[str]:
    """Return the command that runs the `expunge` of this environment with `arguments`."""
    return [sys.executable, "-m", "expunge.cli", *arguments]


def ask(command: list[str], workspace: Path) -> str:
    """Run a short command and return its standard output. Raises StageFailedError with its standard error."""
    done = subprocess.run(command, cwd=workspace, env=environment(workspace), text=True, capture_output=True)
    if done.returncode != 0:
        raise StageFailedError(f"{' '.join(command[1:])}: exit status {done.returncode}\n{done.stderr.strip()}")
    return done.stdout


def stage_names(workspace: Path) -> list[str]:
    """Return all stages of dvc.yaml, with matrix stages expanded, in file order, which is an order they can run in."""
    return ask(dvc.command("stage", "list", "--name-only"), workspace).split()


def stale_stages(workspace: Path) -> list[str]:
    """Return the stages whose inputs, parameters or outputs differ from dvc.lock.

    Later stages, which depend on their outputs, are not in the list.
    """
    dvc.set_aside_cut_off(workspace)
    return [name for name in json.loads(ask(dvc.command("status", "--json"), workspace)) if not name.endswith(".dvc")]


def get_ready(workspace: Path) -> None:
    """Start the process from which stages fork, so that it imports their libraries while the checks still run."""
    ask([sys.executable, "-m", "expunge.system.warm"], workspace)


def check(workspace: Path, registers: bool = False) -> None:
    """Raise PreflightError with every conflict of params.yaml, before DVC removes an output.

    With `registers` it is raised, too, if the last stage could not log and register the result. Both are asked at once.
    """
    dvc.set_aside_cut_off(workspace)
    asked = [*([] if passed(workspace) else [("check", "--quiet")]), *([("preflight",)] if registers else [])]
    with ThreadPoolExecutor() as pool:
        for answer in [pool.submit(_first, *a, workspace=workspace) for a in asked]:
            answer.result()


def _first(*arguments: str, workspace: Path) -> None:
    try:
        ask(expunge(*arguments), workspace)
    except StageFailedError as e:
        raise PreflightError(str(e).split("\n", 1)[1] or str(e)) from None


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield the lines that a process prints, without DVC's hints.

    Raises StageFailedError at their end if the exit status is not 0.
    """
    yield from dvc.lines_of(process)
    if process.wait() != 0:
        raise StageFailedError(f"exited with status {process.returncode}")


class Engine(Protocol):
    """What runs the stages of a flow."""

    def lines(self, stage: str) -> Iterator[str]:
        """Yield what a stage prints. Raises StageFailedError at its end if it failed."""
        ...


class Repro:
    """`dvc repro` of several stages in one process, whose output is read stage by stage.

    A process for each stage would read dvc.lock as many times, which takes DVC half a second. A stage that failed may
    be tried again: then another process goes on from it. Leave the context to end a process that still runs.

    `stages`: names of `dvc stage list`, in the order to run; with `every`, these are all of them in its order.
    """

    def __init__(self, stages: list[str], workspace: Path, force: bool, every: bool = False) -> None:
        self._stages, self._workspace, self._force, self._every = stages, workspace, force, every
        self._process: subprocess.Popen[str] | None = None
        self._lines: Iterator[str] = iter(())
        self._next: re.Match[str] | None = None  # the line with which the next stage began

    def __enter__(self) -> Repro:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def lines(self, stage: str) -> Iterator[str]:
        """Yield the lines of `stage`, as `lines_of` does; the stages before it must have been read."""
        if self._next is None:
            self._start(stage)
        else:
            if self._next["name"] != stage:  # DVC skips a frozen stage without such a line
                return
            yield self._next.string
            self._next = None
        for line in self._lines:
            if (begun := STAGE_LINE.match(line)) and begun["name"] in self._stages and begun["name"] != stage:
                self._next = begun
                return
            yield line

    def _start(self, stage: str) -> None:
        """Start a process for `stage` and those after it, in place of one that came to its end before."""
        self._end()
        force = ["--force"] if self._force else []
        left = self._stages[self._stages.index(stage) :]
        if self._every and left == self._stages:
            left = [PIPELINE]  # all its stages in this order; DVC would read the file again for every name
        self._process = started(
            dvc.command("repro", "--single-item", *force, *left), self._workspace, environment(self._workspace)
        )
        self._lines = lines_of(self._process)

    def _end(self) -> None:
        if self._process is not None:
            end(self._process)


def follow(lines: Iterator[str], what: str) -> list[str]:
    """Write every line to the log of the task as it arrives. Returns the last TAIL lines.

    A StageFailedError of `lines` is raised again with `what` and these lines.
    """
    logger, tail, progress = get_run_logger(), deque[str](maxlen=TAIL), Progress(what)
    try:
        for line in lines:
            entry = entry_of(line)
            words = entry.line if entry else line
            logger.info(words)
            tail.append(words)
            if entry:
                progress.see(entry)
    except StageFailedError as e:
        raise StageFailedError(f"{what} {e}:\n" + "\n".join(tail)) from None
    progress.end()
    return list(tail)


def stream(command: list[str], workspace: Path, what: str) -> list[str]:
    """Run a command and log its lines as `follow` does. Raises StageFailedError if its exit status is not 0."""
    process = started(command, workspace, environment(workspace))
    try:
        return follow(lines_of(process), what)
    finally:
        end(process)


def may_pass_by_itself(_task: Task[..., object], run: TaskRun, state: State[object]) -> bool:
    """Return whether to retry.

    A stage is retried for minutes if another process holds the workspace, and twice if it uses outside services.
    """
    if BUSY in (state.message or ""):
        return run.run_count < BUSY_TRIES
    return run.run_count < OUTSIDE_TRIES and any(run.name.startswith(name) for name in OUTSIDE)


@task(
    cache_policy=NO_CACHE,
    retries=BUSY_TRIES - 1,
    retry_delay_seconds=exponential_backoff(backoff_factor=5),
    retry_condition_fn=may_pass_by_itself,
    task_run_name="{stage}",
)
def run_stage(stage: str, repro: Engine) -> str:
    """Follow one stage of `repro` and stream its output into the log. Returns "done" or "up to date"."""
    tail = follow(repro.lines(stage), f"stage {stage}")
    return UP_TO_DATE if any("didn't change, skipping" in line for line in tail) else DONE
