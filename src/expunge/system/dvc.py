"""DVC through its command line: the one place that starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from expunge.system.errors import DataError, ExpungeError


def command(*arguments: str) -> list[str]:
    """`dvc ARGUMENTS` as this interpreter starts it."""
    return [sys.executable, "-m", "dvc", *arguments]


def environment(**more: str) -> dict[str, str]:
    """What DVC runs in: this interpreter first on the path, because dvc.yaml says `python`; no report to anybody."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "GIT_TERMINAL_PROMPT": "0", **more}


def run(*arguments: str, root: Path = Path(), error: type[ExpungeError] = DataError) -> str:
    """Standard output of a DVC command in `root`. Raises `error` with the last lines that DVC wrote when it fails."""
    what = " ".join(takewhile(lambda a: not a.startswith("-"), arguments[:2]))
    return _output_of(what, command(*arguments), root, error)


def commit(names: Sequence[str], root: Path = Path()) -> None:
    """As `dvc commit --force NAMES`: the outputs of these stages and `.dvc` files as they are now, into the cache and
    the lock file. DVC's own command reads and writes the lock file anew for every name."""
    if names:
        _output_of("commit", [sys.executable, "-m", "expunge.system.dvc_commit", *names], root, DataError)


def _output_of(what: str, arguments: Sequence[str], root: Path, error: type[ExpungeError]) -> str:
    done = subprocess.run(arguments, cwd=root, env=environment(), text=True, capture_output=True)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise error(f"dvc {what} failed: {tail}")
    return done.stdout


def reproduce(*arguments: str, root: Path = Path(), **variables: str) -> bool:
    """`dvc repro` in `root`, its output passed on, with these environment `variables`. Returns whether it succeeded."""
    return subprocess.call(command("repro", *arguments), cwd=root, env=environment(**variables)) == 0
