"""Test that every stage may be killed at any moment: what it wrote is whole, and the next run writes the same bytes.

The stages run in forked processes, which need not import the libraries again, so a kill takes a fraction of a second.
`EXPUNGE_STAGE_KILLS` sets how many kills there are in all, `EXPUNGE_KILL_SEED` their seed. tests/stages/test_kill.py
kills whole runs of `dvc repro`.
"""

from __future__ import annotations

import math
import mmap
import os
import resource
import shutil
import signal
import sqlite3
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml

from expunge.system.files import MANIFEST
from tests.killing import ASKED
from tests.stages.test_disk import TIMES, copied, outputs, put_back, stage
from tests.system.test_storage import contents, left_behind

KILLS = int(os.environ.get("EXPUNGE_STAGE_KILLS", "200"))
SEED = int(os.environ.get("EXPUNGE_KILL_SEED", "0"))
CONTINUED = "data/shadow"  # DVC leaves this output where it is, because a killed run continues it


@pytest.mark.slow
@pytest.mark.timeout(KILLS * 60 + 3000)
def test_every_stage_is_killed_at_drawn_moments(short, tmp_path):
    names = list(yaml.safe_load((short / "dvc.lock").read_text())["stages"])
    workspace, each = copied(short, tmp_path / "workspace"), math.ceil(KILLS / len(names))
    for number, name in enumerate(names):
        wanted = contents(short, outputs(short, name))
        requests, seconds = measured(workspace, name, tmp_path)
        moments = drawn(np.random.default_rng([SEED, number]), workspace, requests, seconds)
        killed = late = 0
        while killed < each:
            remove(workspace, name)
            status, said = stage(workspace, name, tmp_path, next(moments))
            if status == 0:  # The process ended before its moment came.
                late += 1
                assert late < 20 + each, f"{name} is hardly ever killed"
                continue
            assert status in (-signal.SIGKILL, -signal.SIGPROF), said
            killed += 1
            for out in outputs(workspace, name):
                check_whole(workspace, out, wanted)
        remove(workspace, name)
        status, said = stage(workspace, name, tmp_path)
        assert status == 0, said
        check_same(contents(workspace, outputs(workspace, name)), wanted)
        assert not left_behind(workspace), name
        print(f"{name}: {killed} kills within {requests} requests and {seconds:.2f} seconds", flush=True)
        # The next stages begin with the outputs of the undisturbed run, because some outputs tell seconds.
        for out in outputs(short, name):
            put_back(short / out, workspace / out)
    with closing(sqlite3.connect(workspace / "mlflow.db")) as c:
        assert not c.execute("SELECT * FROM runs WHERE status = 'RUNNING'").fetchall()


def measured(workspace: Path, name: str, logs: Path) -> tuple[int, float]:
    """Return how many requests to the file system the stage makes, and how many processor seconds it takes."""
    shared = mmap.mmap(-1, 8)  # the child counts in memory that both processes see
    remove(workspace, name)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    status, said = stage(
        workspace,
        name,
        logs,
        lambda: on_request(workspace, lambda n: shared.__setitem__(slice(8), struct.pack("q", n))),
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert status == 0, said
    return struct.unpack("q", shared[:])[0], after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def drawn(rng: np.random.Generator, workspace: Path, requests: int, seconds: float) -> Iterator[Callable[[], object]]:
    """Yield functions that have the process killed at a request to the file system, or while it computes."""
    while True:
        last = int(rng.integers(1, requests + 1))
        yield lambda last=last: on_request(workspace, lambda n: n == last and os.kill(os.getpid(), signal.SIGKILL))
        # The system ends the process with SIGPROF when it has used so much processor time. Nothing handles the signal.
        moment = float(rng.uniform(0, seconds)) or seconds
        yield lambda moment=moment: signal.setitimer(signal.ITIMER_PROF, moment)


def on_request(workspace: Path, act: Callable[[int], object]) -> None:
    """From now on, call `act` with the number of each request that may change a file of `workspace`, before it."""
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in ASKED or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        if Path(os.path.abspath(os.fsdecode(arguments[0]))).is_relative_to(workspace):
            seen += 1
            act(seen)

    sys.addaudithook(hook)


def remove(workspace: Path, name: str) -> None:
    """Remove the outputs of a stage, as DVC does before it runs the stage."""
    for out in outputs(workspace, name):
        path = workspace / out
        if path.is_dir() and out != CONTINUED:
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def check_whole(workspace: Path, out: str, wanted: dict[str, bytes]) -> None:
    """Assert that an output is not there, or is the one that the undisturbed run wrote."""
    mine = {n: content for n, content in wanted.items() if n == out or n.startswith(f"{out}/")}
    made = contents(workspace, [out])
    if not (workspace / out).exists() or (out == CONTINUED and f"{out}/{MANIFEST}" not in made):
        return
    check_same(made, mine)


def check_same(made: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    """Assert that the files are the same and have the same bytes, but for those that tell seconds."""
    assert made.keys() == wanted.keys()
    assert not [n for n in wanted if made[n] != wanted[n] and (n.endswith(".safetensors") or not n.startswith(TIMES))]
