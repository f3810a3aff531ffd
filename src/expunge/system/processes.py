"""Start a process whose output is read line by line, and end it with its descendants."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from expunge.system.parent import ending_with_me


def started(command: Sequence[str], root: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a process in `root` that ends, too, if this one is killed; its stdout and stderr come together."""
    return subprocess.Popen(
        ending_with_me(command),
        cwd=root,
        env=environment,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def terminate(process: subprocess.Popen[str]) -> None:
    """Ask a process and its descendants to end, unless it has ended. Whoever reads its lines waits for it."""
    with contextlib.suppress(psutil.NoSuchProcess):  # any of them may have ended meanwhile
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
    process.terminate()


def end(process: subprocess.Popen[str]) -> None:
    """End a process and its descendants unless it has ended, and close its output."""
    if process.poll() is None:
        terminate(process)
        process.wait()
    assert process.stdout is not None
    process.stdout.close()
