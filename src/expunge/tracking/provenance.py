"""What a run and a version were made from: the digest of dvc.lock and the state of git."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from expunge.system.files import digest_of


def lock_digest() -> str:
    """Digest of what dvc.lock says of every stage upstream of `register`: HEAD is the commit before this lock."""
    lock = Path("dvc.lock")
    stages = (yaml.safe_load(lock.read_text()) if lock.is_file() else {}).get("stages", {})
    return digest_of({name: entry for name, entry in stages.items() if name != "register"})


def git_state() -> dict[str, str]:
    """Commit and whether the work tree differs from it; empty outside a git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "git_commit": git("rev-parse", "HEAD"),
            "git_dirty": str(bool(git("status", "--porcelain", "-uno"))).lower(),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}
