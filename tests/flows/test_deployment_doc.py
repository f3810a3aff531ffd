"""Runs the commands of docs/deployment.md, from a clone to a scheduled run that registered a model."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.pipeline import ENVIRONMENT, ROOT
from tests.servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("service")]
DOCUMENT = ROOT / "docs" / "deployment.md"
# The test replaces these commands, because a second environment would take 2 GB.
INSTEAD = {"make setup": f"ln -s {sys.prefix} .venv"}


def commands() -> str:
    """Return the shell blocks in order. A block that is only shown, and not to be run, has no language."""
    script = "\n".join(re.findall(r"^```bash\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE))
    for there, here in INSTEAD.items():
        assert there in script, f"{DOCUMENT.name} no longer says {there!r}"
        script = script.replace(there, here)
    return script


@pytest.mark.long
def test_from_an_empty_machine_to_a_scheduled_run_that_registered_a_model(tmp_path):
    port = str(free_port())
    script = "set -euo pipefail\n" + commands().replace("4200", port)
    script = script.replace("prefect server start", "date +%s > began\nprefect server start")
    script = script.replace("expunge show", "date +%s > ended\nexpunge show")
    home = tmp_path / "prefect"
    environment = {**ENVIRONMENT, "PREFECT_HOME": str(home), "HOME": str(tmp_path), "REPOSITORY": str(ROOT)}
    start = time.monotonic()
    try:
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=900
        )
    finally:
        left = stop_below(tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:] + log(tmp_path)
    assert "Every method beside the original and the retrained model" in done.stdout
    assert re.search(r"Version 1 (passes|does not pass) the gates", done.stdout)
    assert "as good as retraining" in done.stdout
    assert not left, f"still running after the last command: {left}"
    seconds = [int((tmp_path / "expunge" / name).read_text()) for name in ("began", "ended")]
    print(f"server start to finished run: {seconds[1] - seconds[0]} s; all: {time.monotonic() - start:.0f} s")


def stop_below(folder: Path) -> list[str]:
    """Kill the processes that the script left running, and return their command lines."""
    found: list[str] = []
    time.sleep(5)
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            if process.environ().get("PREFECT_HOME", "").startswith(str(folder)):
                found.append(" ".join(process.cmdline()))
                process.kill()
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found


def log(folder: Path) -> str:
    path = folder / "expunge" / ".expunge" / "worker.log"
    return path.read_text()[-4000:] if path.is_file() else ""
