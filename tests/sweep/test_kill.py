"""Test a sweep that is killed with SIGKILL at moments drawn with a seed.

Stages read either the old state or the new one, and the next sweep completes the killed one.
"""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from expunge.data.dataset import Dataset
from expunge.data.split import Split
from expunge.features.store import FeatureStore
from expunge.sweep import sweep
from expunge.sweep.journal import JOURNAL
from expunge.system.errors import ExpungeError
from tests import killing
from tests.sweep import people_workspace

ERASED = [2, 3, 17]
ROUNDS = 36
OFTEN = 8  # of these belong to the fast tests


def erase(root):
    return sweep(root, subjects=[people_workspace.person(i) for i in ERASED], apply=True)


def in_a_child(root, until: int) -> tuple[int, int]:
    """Sweep in a child process that is killed at its `until`-th event in the workspace. Return status and events."""
    return killing.in_a_child(lambda: erase(root), until, lambda _, path: str(root) in path)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return people_workspace.workspace(tmp_path_factory.mktemp("kill") / "workspace", ERASED)


@pytest.fixture(scope="module")
def after(before, tmp_path_factory):
    """Return the files after a sweep that is not killed, and the number of its events.

    The key of the tombstones is fixed; with random keys, no two workspaces would have the same bytes.
    """
    (before / "data/tombstones").mkdir()
    (before / "data/tombstones/key").write_bytes(b"k" * 32)
    root = people_workspace.copy(before, tmp_path_factory.mktemp("kill") / "after")
    status, events = in_a_child(root, 0)
    assert status == 0 and events > 150
    return people_workspace.files(root), events


def readable(root) -> bool:
    """Return whether stages can read the data. If they can, its parts must belong together."""
    try:
        dataset, split = Dataset(root / "data/dataset"), Split(root / "data/split")
        store = FeatureStore(root / "data/features/original", verify=True)
    except ExpungeError:
        return False
    assert len(split.parts) == dataset.rows == store.rows
    assert store.manifest["dataset_digest"] == split.manifest["dataset"] == dataset.digest
    return True


@pytest.mark.parametrize("seed", [pytest.param(n, marks=[pytest.mark.slow] * (n >= OFTEN)) for n in range(ROUNDS)])
def test_a_sweep_that_is_killed_at_any_moment_is_completed_by_the_next(before, after, tmp_path, seed):
    wanted, events = after
    root = people_workspace.copy(before, tmp_path / "workspace")
    old = people_workspace.files(root)
    moment = int(np.random.default_rng(seed).integers(1, events + 1))
    status, _ = in_a_child(root, moment)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    state = people_workspace.files(root)
    committed = (root / JOURNAL).is_file() or state == wanted
    if readable(root):
        # The data are complete and either old or new. Staged files lie beside them under names that no stage reads.
        rows = Dataset(root / "data/dataset").rows
        assert rows == (
            people_workspace.ROWS - 30 if state.get("data/tombstones/rows.safetensors") else people_workspace.ROWS
        )
        if rows == people_workspace.ROWS:
            assert {n: c for n, c in state.items() if n in old} == old
    else:
        assert committed, "unreadable only between the commit and its end"
    again = sweep(root, apply=True) if committed else erase(root)
    assert again.clean
    assert people_workspace.files(root) == wanted
