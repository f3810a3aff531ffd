"""Test the recovery from a dvc.lock that was cut off, which can happen because DVC writes the file in place.

The next run sets the incomplete file aside and continues without help.
"""

from __future__ import annotations

import fcntl
from pathlib import Path

import numpy as np
import pytest
import yaml

from expunge.system import dvc
from expunge.system.cut_off import set_aside, whole
from expunge.system.errors import DataError

STAGES = {
    f"stage{i}": {"cmd": f"echo {i} > out-{i}", "deps": ["given"], "params": ["one"], "outs": [f"out-{i}"]}
    for i in range(3)
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    (root / "given").write_text("0\n")
    (root / "params.yaml").write_text("one: [1, 2]\n")
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    dvc.run("init", "--no-scm", "--quiet", root=root)
    dvc.run("repro", root=root)
    return root


def test_dvc_can_read_every_beginning_that_counts_as_complete(finished):
    """The file is cut at every byte. Most cuts are not whole, and every cut that is must follow DVC's own schema."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA

    content = (finished / "dvc.lock").read_bytes()
    assert whole(content)
    ends = [n for n in range(len(content)) if whole(content[:n])]
    assert 3 < len(ends) <= content.count(b"\n") and not whole(b"")
    for n in ends:
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(content[:n]))


def test_a_lock_file_is_not_set_aside_while_dvc_writes_it(finished, tmp_path):
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages:\n  one:\n    cm")
    with (tmp_path / ".dvc/tmp/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert set_aside(tmp_path) is None and (tmp_path / "dvc.lock").is_file()
    assert "was cut off while DVC wrote it" in (set_aside(tmp_path) or "")
    assert not (tmp_path / "dvc.lock").exists() and (tmp_path / "dvc.lock.cut-off").is_file()
    assert set_aside(tmp_path) is None


def test_the_next_run_restores_the_lock_file_byte_for_byte(finished, capfd):
    lock = finished / "dvc.lock"
    content = lock.read_bytes()
    at = int(np.random.default_rng(0).choice([n for n in range(len(content)) if not whole(content[:n])]))
    lock.write_bytes(content[:at])
    with pytest.raises(DataError, match="dvc status failed"):
        dvc.run("status", root=finished)  # DVC itself fails from then on.
    assert dvc.reproduce(root=finished)
    assert lock.read_bytes() == content and "was cut off" in capfd.readouterr().out
