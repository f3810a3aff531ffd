"""Take commands from pages, and run them in a workspace."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.pages.shell import blocks, spans
from tests.pipeline import ENVIRONMENT, ROOT
from tests.servers import wait_for

BASH = ("bash", "-euo", "pipefail", "-c")


def typed(page: str, begins: str, **replaced: str) -> str:
    """Return the block of a page that begins so, with the page's own placeholders replaced."""
    (text,) = [block.text for block in blocks(ROOT / page) if block.text.startswith(begins)]
    for placeholder, value in replaced.items():
        assert placeholder in text, f"{page}: no {placeholder} in the block"
        text = text.replace(placeholder, value)
    return text


def said_in(page: str, command: str, **replaced: str) -> str:
    """Return a command that stands in a sentence of a page."""
    assert command in {text for _, text in spans(ROOT / page)}, f"{page} does not say `{command}`"
    for placeholder, value in replaced.items():
        command = command.replace(placeholder, value)
    return command


def around(where: Path) -> dict[str, str]:
    """Return the environment of a command in a workspace, whose code is the workspace's own if it has any."""
    environment = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("EXPUNGE_")}
    source = where / "src" if (where / "src").is_dir() else ROOT / "src"
    return {
        **environment,
        "EXPUNGE_WARM": "0",  # each run has an environment of its own, for which a server would start in vain
        "PYTHONPATH": os.pathsep.join([str(source), str(ROOT)]),
        "PREFECT_HOME": str(where.parent / "prefect"),
        "COLUMNS": "120",
    }


@contextmanager
def serving(script: str, where: Path, port: int) -> Iterator[None]:
    """Run a script that starts a server, until the server answers, and end both afterwards."""
    log = where.parent / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*BASH, script], cwd=where, env=around(where), stdout=out, stderr=out, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process, log, seconds=180)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def run(script: str, where: Path, answer: str = "", status: int = 0) -> str:
    """Run a script with bash in a workspace, and return what it printed. The first command that fails ends it."""
    done = subprocess.run([*BASH, script], cwd=where, env=around(where), input=answer, text=True, capture_output=True)
    assert done.returncode == status, f"{script}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def lines(script: str) -> list[str]:
    return [line.partition(" #")[0].strip() for line in script.splitlines() if line.strip()]
