"""Check params.yaml in a separate process while a stage runs, unless the same file has already passed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from expunge.system.errors import ConfigError, ExpungeError
from expunge.system.files import read_json, write_json
from expunge.system.installed import installed_version
from expunge.system.paths import WORK

PARAMS, RECORD = Path("params.yaml"), WORK / "check.json"


def passed(root: Path = Path()) -> bool:
    """Whether params.yaml, as it is now, has passed the check of the installed version in this workspace."""
    try:
        return bool(read_json(root / RECORD).get("params") == _digest(root))
    except (ExpungeError, OSError, ValueError, AttributeError):
        return False


def remember(root: Path = Path()) -> None:
    """Record that params.yaml, as it is now, passed the check."""
    write_json(root / RECORD, {"params": _digest(root)})


@contextmanager
def checked_beside() -> Iterator[None]:
    """Check params.yaml in a separate process while the body runs.

    Raises ConfigError with one line per conflict. It is raised when the body is done and before any code that follows
    it, so the stage fails and DVC does not keep what the body wrote.
    """
    if passed():
        yield
        return
    command = [sys.executable, "-m", "expunge.cli", "check", "--quiet"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield
        output, _ = child.communicate()
        if child.returncode != 0:
            raise ConfigError(
                output.strip().removeprefix("error: ") or f"expunge check failed with exit status {child.returncode}"
            )
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()


def _digest(root: Path) -> str:
    return hashlib.sha256(installed_version().encode() + (root / PARAMS).read_bytes()).hexdigest()
