"""Test DVC through its command line, and `commit`, which replaces `dvc commit`, since that rewrites dvc.lock too often.

The command `dvc commit` is the reference.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from expunge.system import dvc
from expunge.system.errors import DataError

STAGES = {
    "one": {"cmd": "echo 1 > one", "deps": ["given"], "outs": ["one"]},
    "two": {
        "matrix": {"n": [1, 2]},
        "cmd": "echo ${item.n} > two-${item.n}",
        "deps": ["one"],
        "outs": ["two-${item.n}"],
    },
    "stale": {"cmd": "echo 3 > three", "deps": ["given"], "outs": ["three"]},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (root / "given").write_text("0\n")
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    dvc.run("init", "--no-scm", "--quiet", root=root)
    dvc.run("add", "given", root=root)
    dvc.run("repro", root=root)
    for name in ("given", "one", "two-1", "two-2"):
        (root / name).unlink()  # The file may be a link into the cache.
        (root / name).write_text(f"{name}, swept\n")
    return root


@pytest.mark.slow
def test_a_commit_of_several_writes_what_dvc_writes(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(root, other, symlinks=True)
    names = ["given.dvc", "one", "two@1", "two@2"]
    dvc.commit(names, root)
    dvc.run("commit", "--force", *names, root=other)

    def state(place: Path) -> dict[str, bytes]:
        files = [place / "dvc.lock", place / "given.dvc", *(place / ".dvc/cache/files/md5").glob("??/*")]
        return {file.relative_to(place).as_posix(): file.read_bytes() for file in files}

    assert state(root) == state(other)
    assert "stale" in dvc.run("status", root=root)
    with pytest.raises(DataError, match=r"dvc commit failed: [^$]*nothing"):
        dvc.commit(["nothing"], root)


def test_a_commit_without_outputs_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple] = []
    monkeypatch.setattr(subprocess, "run", lambda *command, **_: started.append(command))
    monkeypatch.setattr(subprocess, "Popen", lambda *command, **_: started.append(command))
    dvc.commit([], tmp_path / "is not there")
    assert started == []
