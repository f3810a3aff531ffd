"""The provenance of a run or a version: the digest of dvc.lock and the state of Git."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from expunge.system.files import digest_of
from expunge.system.paths import IN_GIT


def lock_digest() -> str:
    """Return the digest of the entries in dvc.lock of all stages except `register`.

    The Git commit does not determine them: HEAD is the commit before this lock.
    """
    lock = Path("dvc.lock")
    stages = (yaml.safe_load(lock.read_text()) if lock.is_file() else {}).get("stages", {})
    return digest_of({name: entry for name, entry in stages.items() if name != "register"})


def git_state() -> dict[str, str]:
    """Return the Git commit, and whether tracked files differ from it; {} outside a Git checkout.

    Files that a run itself writes are ignored: dvc.lock, metrics and plots. `lock_digest` covers them.
    """
    others = [":/", *(f":(exclude){path}" for path in ("dvc.lock", *IN_GIT))]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "git_commit": git("rev-parse", "HEAD"),
            "git_dirty": str(bool(git("status", "--porcelain", "-uno", "--", *others))).lower(),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}
