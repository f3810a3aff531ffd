"""Workspaces from git and a DVC remote.

Each is a persistent clone that is updated before a run and whose results are pushed after it.

The clone's own branch is never moved: results are pushed to a separate branch, and dvc.lock stays in the work tree. So
the next run starts from what the last one made, even if that one was killed, and does nothing if nothing is stale. The
small metrics and plots, which DVC leaves to git, are pushed with dvc.lock.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from expunge.system import dvc
from expunge.system.errors import CloneError
from expunge.system.files import sha256, write_text
from expunge.system.paths import IN_GIT, WORK

LOCK = "dvc.lock"
REMOTE = "expunge"
PUSHED = WORK / "pushed"  # holds the digest of the dvc.lock that was pushed last
# Commits are made in the pipeline's name, on any machine.
AUTHOR = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in {"NAME": "Expunge", "EMAIL": "expunge@localhost"}.items()
}


def refresh(repository: str, directory: str, revision: str = "main", remote: str | None = None) -> dict[str, str]:
    """Clone `repository` into `directory`, or fetch there; check out `revision` and get its data from the DVC remote.

    `remote`: address of the DVC remote, if the repository names none. Changes of tracked files are discarded; outputs
    of stages stay. Returns {"directory": its absolute path}. Raises CloneError with the message of git or DVC.
    """
    path = Path(directory).expanduser().resolve()
    if not (path / ".git").is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        _run(path.parent, "git", "clone", "--quiet", "--no-checkout", repository, str(path))
    _run(path, "git", "remote", "set-url", "origin", repository)
    _run(path, "git", "fetch", "--quiet", "--tags", "--prune", "origin")
    _run(path, "git", "checkout", "--quiet", "--force", "--detach", _commit(path, revision))
    if remote is not None:
        _dvc(path, "remote", "add", "--local", "--force", "--default", REMOTE, remote)
    if has_remote(path):
        # Results of stages that ran elsewhere are restored from the run cache; those that nobody pushed are computed
        # here.
        _dvc(path, "fetch", "--run-cache", "--quiet")
    inputs = _run(path, "git", "ls-files", "*.dvc").split()
    if inputs:
        _dvc(path, "checkout", "--quiet", "--force", *inputs)
    return {"directory": str(path)}


def push(workspace: Path, branch: str) -> str | None:
    """Push data and run cache to the DVC remote, then dvc.lock, metrics and plots as one commit on `branch` of origin.

    The commit's parent is the commit that is checked out; the work tree and its index are not changed. Returns the
    commit, or None if the results equal those of the repository. Data is pushed first, so that a branch never refers to
    missing data. Raises CloneError if there is no DVC remote or no dvc.lock.
    """
    if not has_remote(workspace):
        raise CloneError(
            f"{workspace}: has no DVC remote; add one with `dvc remote add --default NAME ADDRESS`, or "
            "deploy with --remote"
        )
    if not (workspace / LOCK).is_file():
        raise CloneError(f"{workspace}: no {LOCK}, so no stage was run here")
    digest = sha256(workspace / LOCK)
    _dvc(workspace, "push", "--run-cache", "--quiet")
    with tempfile.TemporaryDirectory() as tmp:
        index = {**AUTHOR, "GIT_INDEX_FILE": str(Path(tmp) / "index")}
        _run(workspace, "git", "read-tree", "HEAD", **index)
        existing = [str(path) for path in IN_GIT if (workspace / path).exists()]
        _run(workspace, "git", "add", "--all", "--force", "--", LOCK, *existing, **index)
        tree = _run(workspace, "git", "write-tree", **index)
        if tree == _run(workspace, "git", "rev-parse", "HEAD^{tree}"):
            write_text(workspace / PUSHED, digest)
            return None
        message = f"Results of {branch.removeprefix('expunge/')}"
        commit = _run(workspace, "git", "commit-tree", tree, "-p", "HEAD", "-m", message, **index)
    _run(workspace, "git", "push", "--quiet", "origin", f"{commit}:refs/heads/{branch}")
    write_text(workspace / PUSHED, digest)
    return commit


def unpushed(workspace: Path) -> bool:
    """Whether dvc.lock differs from the one that was pushed last, for example because an earlier push failed."""
    lock, pushed = workspace / LOCK, workspace / PUSHED
    return lock.is_file() and not (pushed.is_file() and pushed.read_text(encoding="utf-8") == sha256(lock))


def has_remote(workspace: Path) -> bool:
    """Whether DVC has a default remote in `workspace`."""
    return any(line.startswith("core.remote=") for line in _dvc(workspace, "config", "--list").splitlines())


def _commit(path: Path, revision: str) -> str:
    """Return the commit of `revision`, which is looked up as a branch of origin, then as a tag or commit."""
    for name in (f"refs/remotes/origin/{revision}", revision):
        found = subprocess.run(
            ["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"], cwd=path, text=True, capture_output=True
        )
        if found.returncode == 0:
            return found.stdout.strip()
    raise CloneError(f"{path}: origin has no branch, tag or commit {revision!r}")


def _dvc(path: Path, *arguments: str) -> str:
    return _run(path, *dvc.command(*arguments))


def _run(path: Path, *command: str, **more: str) -> str:
    done = subprocess.run(command, cwd=path, env=dvc.environment(**more), text=True, capture_output=True)
    if done.returncode != 0:
        what = " ".join(command[3:] if command[1:2] == ("-m",) else command)
        raise CloneError(f"{path}: {what}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()
