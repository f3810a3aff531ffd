"""Test that the cost of requests grows with their number and not with its square.

The fast test counts function calls, which do not depend on the machine. The slow test compares processor times, with
room for noise, and reports them. `EXPUNGE_LOAD` sets the number of completed requests.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.erasure.load import FINISH, calls, steps, workspace

FEW = (60, 6)  # completed requests, waiting requests
LOAD = int(os.environ.get("EXPUNGE_LOAD", "2000"))
MANY = (LOAD, LOAD // 10)
LIMIT = 8  # for four times as much: 4 if the cost is proportional, 16 if it is quadratic


def costs(
    root: Path, done: int, waiting: int, measure: Callable[[Callable[[], object]], float], whole: bool = True
) -> dict[str, float]:
    store, url = workspace(root, done, waiting)
    todo = steps(root, store, url, waiting)
    found = {}
    for name, work in todo.items():
        if whole or name != FINISH:
            found[name] = measure(work)
            print(f"{done:,} and {waiting:,} requests, {name}: {found[name]:,.1f}", flush=True)
    store.engine.dispose()
    return found


def processor_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def in_a_child(root: Path, done: int, waiting: int) -> dict[str, float]:
    """Return the processor seconds of every step and, as `MiB`, the peak memory of the process that did them."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        found = costs(root, done, waiting, processor_seconds)
        found["MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        content = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return json.loads(content)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_step_makes_quadratically_many_calls(whole, tmp_path):
    """The fast part ends before the sweep and the certificates."""
    costs(tmp_path / "warm", 4, 1, calls, whole)  # imports and caches
    few = costs(tmp_path / "few", *FEW, calls, whole)
    many = costs(tmp_path / "many", *(4 * n for n in FEW), calls, whole)
    assert min(few.values()) > 300
    grown = {name: round(many[name] / few[name], 1) for name in few}
    assert max(grown.values()) < LIMIT, grown


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_processor_times_of_many_requests_are_not_quadratic(tmp_path):
    few = in_a_child(tmp_path / "few", *(n // 4 for n in MANY))
    many = in_a_child(tmp_path / "many", *MANY)
    grown = {name: round(many[name] / few[name], 1) for name in few if many[name] > 1}
    assert max(grown.values()) < LIMIT, grown
