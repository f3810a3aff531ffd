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


@pytest.mark.slow
def test_outputs_that_a_stage_with_a_mistake_loses_come_back_without_a_run(tmp_path):
    """docs/check.md rests on this. DVC removes the outputs before the stage finds the mistake in params.yaml."""
    check = "if grep -q typo params.yaml; then exit 2; fi"
    stage = {
        "cmd": f"{check}; echo run >> runs; mkdir models; echo 1 > models/file; echo 2 > small; echo 3 > metric.json",
        "params": ["fit"],
        "outs": ["models", "small"],
        "metrics": [{"metric.json": {"cache": False}}],
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"fit": stage}}))
    params = tmp_path / "params.yaml"
    params.write_text("fit: {ridge: 1}\n")
    dvc.run("init", "--no-scm", "--quiet", root=tmp_path)
    dvc.run("repro", root=tmp_path)
    params.write_text("fit: {typo: 1}\n")
    with pytest.raises(DataError):
        dvc.run("repro", root=tmp_path)
    outputs = {"models/file": "1\n", "small": "2\n", "metric.json": "3\n"}
    assert not any((tmp_path / name).exists() for name in outputs)
    params.write_text("fit: {ridge: 1}\n")
    dvc.run("repro", root=tmp_path)
    assert {name: (tmp_path / name).read_text() for name in outputs} == outputs
    assert (tmp_path / "runs").read_text() == "run\n"
