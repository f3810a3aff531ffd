"""What a run and a version were made from: the digest of dvc.lock and the state of git."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from expunge.system.files import digest_of
from expunge.system.paths import IN_GIT


def lock_digest() -> str:
    """Digest of what dvc.lock says of every stage upstream of `register`: HEAD is the commit before this lock."""
    lock = Path("dvc.lock")
    stages = (yaml.safe_load(lock.read_text()) if lock.is_file() else {}).get("stages", {})
    return digest_of({name: entry for name, entry in stages.items() if name != "register"})


def git_state() -> dict[str, str]:
    """Commit, and whether the work tree differs from it in anything but what a run itself writes: dvc.lock, metrics and
    plots, which `lock_digest` tells. Empty outside a git checkout."""
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
