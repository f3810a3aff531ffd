"""The state of Git in the working directory."""

from __future__ import annotations

import subprocess

from expunge.system.paths import IN_GIT


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
