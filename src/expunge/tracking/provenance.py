"""The provenance of a run or a version: the digest of dvc.lock."""

from __future__ import annotations

from pathlib import Path

import yaml

from expunge.system.files import digest_of


def lock_digest() -> str:
    """Return the digest of the entries in dvc.lock of all stages except `register`.

    The Git commit does not determine them: HEAD is the commit before this lock.
    """
    lock = Path("dvc.lock")
    stages = (yaml.safe_load(lock.read_text()) if lock.is_file() else {}).get("stages", {})
    return digest_of({name: entry for name, entry in stages.items() if name != "register"})
