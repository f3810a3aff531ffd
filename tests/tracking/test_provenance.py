"""Test the commit that a run records for its code, and when that code counts as changed."""

from __future__ import annotations

import subprocess

from expunge.system.git import git_state


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    return subprocess.run(("git", *identity, *arguments), text=True, capture_output=True, check=True).stdout.strip()


def test_files_that_a_run_writes_do_not_count_as_changed_code(tmp_path, monkeypatch):
    workspace = tmp_path / "below"
    names = ("params.yaml", "dvc.lock", "reports/outcome.json", "reports/metrics/loft.json", "reports/plots/kl.csv")
    for name in names:
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text("1\n")
    (tmp_path / "code.py").write_text("1\n")
    monkeypatch.chdir(workspace)
    git("init", "--quiet", str(tmp_path))
    git("add", "--all", ":/")
    git("commit", "--quiet", "--message", "first")
    for name in names[1:]:
        (workspace / name).write_text("2\n")
    assert git_state() == {"git_commit": git("rev-parse", "HEAD"), "git_dirty": "false"}
    for path in (workspace / "params.yaml", tmp_path / "code.py"):
        path.write_text("2\n")
        assert git_state()["git_dirty"] == "true"
        path.write_text("1\n")
