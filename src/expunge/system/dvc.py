"""DVC through its command line: how it is started, in which environment, and how its failures are raised."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from expunge.system.cut_off import set_aside
from expunge.system.errors import DataError, ExpungeError
from expunge.system.parent import ending_with_me

# DVC's hints for people who ran it themselves.
HINTS = re.compile(
    r"To track the changes with git|\s*git add |To enable auto staging|\s*dvc config core|Use `dvc push`"
)


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield the lines that a process of DVC prints, without blank ones and DVC's hints."""
    assert process.stdout is not None
    yield from (line.rstrip() for line in process.stdout if line.strip() and not HINTS.match(line))


def command(*arguments: str) -> list[str]:
    """Return the command line of `dvc ARGUMENTS` for this interpreter."""
    return [sys.executable, "-m", "expunge.system.dvc_command", *arguments]


def environment(**more: str) -> dict[str, str]:
    """Return the environment variables for DVC, extended by `more`.

    This interpreter's folder is first on PATH, because dvc.yaml says `python`. Usage statistics are off. The shell is
    bash where there is one: bash becomes the command that it is given, so that the stage is DVC's own child and ends
    with it (`parent`). Some others, such as dash, stay in between and would keep the stage alive.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    shell = shutil.which("bash") or os.environ.get("SHELL", "/bin/sh")
    given = {"PATH": path, "SHELL": shell, "DVC_NO_ANALYTICS": "1", "GIT_TERMINAL_PROMPT": "0"}
    return {**os.environ, **given, **more}


def run(*arguments: str, root: Path = Path(), error: type[ExpungeError] = DataError) -> str:
    """Run a DVC command in `root` and return its standard output. Raises `error` with DVC's last lines if it fails."""
    what = " ".join(takewhile(lambda a: not a.startswith("-"), arguments[:2]))
    return _output_of(what, command(*arguments), root, error)


def query(
    what: Literal["state", "places", "plan"],
    root: Path = Path(),
    error: type[ExpungeError] = DataError,
    targets: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what `dvc_query` says about `root`. Raises `error` if DVC fails. Only `plan` takes targets."""
    answer = _output_of(what, [sys.executable, "-m", "expunge.system.dvc_query", what, *targets], root, error)
    found: dict[str, Any] = json.loads(answer)
    return found


def commit(names: Sequence[str], root: Path = Path()) -> None:
    """Commit the current outputs of stages and `.dvc` files to the cache and the lock file.

    This is what `dvc commit --force NAMES` does, but DVC's own command would read and write the lock file once for
    every name.
    """
    if names:
        _output_of("commit", [sys.executable, "-m", "expunge.system.dvc_commit", *names], root, DataError)


def _output_of(what: str, arguments: Sequence[str], root: Path, error: type[ExpungeError]) -> str:
    done = subprocess.run(arguments, cwd=root, env=environment(), text=True, capture_output=True)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise error(f"dvc {what} failed: {tail}")
    return done.stdout


def set_aside_cut_off(root: Path = Path()) -> None:
    """Set aside a dvc.lock that ends in the middle, as a killed process leaves it, and print a sentence about it."""
    if sentence := set_aside(root):
        print(sentence)


def reproduce(*arguments: str, root: Path = Path(), **variables: str) -> bool:
    """Run `dvc repro` in `root`, pass its output on, and return whether it succeeded.

    It runs with the environment `variables`, and ends with this process. A dvc.lock that a killed process left cut off
    is set aside first.
    """
    set_aside_cut_off(root)
    started = ending_with_me(command("repro", *arguments))
    return subprocess.call(started, cwd=root, env=environment(**variables)) == 0
