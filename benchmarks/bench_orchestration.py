"""What Prefect adds: the flow against `dvc repro` of the same stages, on digits, with a server that runs already.

python -m benchmarks.bench_orchestration
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from expunge.workspace import lay_out

ROOT = Path(__file__).parents[1]
TARGET = 1.25


def run() -> dict[str, Any]:
    """Seconds of both on fresh workspaces, one after the other; their ratio. Stages compute on one thread."""
    with tempfile.TemporaryDirectory() as tmp, server(Path(tmp) / "prefect") as environment:
        flow(fresh(Path(tmp) / "warm"), environment, "--stages", "prepare")  # imports and the server's caches
        bare, stages = timed(dvc_repro, fresh(Path(tmp) / "bare"), environment)
        flown, _ = timed(flow, fresh(Path(tmp) / "flow"), environment)
    ratio = flown / bare
    table = Table("", "seconds", "ratio", title=f"{stages} stages on digits")
    table.add_row("dvc repro", f"{bare:.1f}", "1")
    table.add_row("flow, running server", f"{flown:.1f}", f"{ratio:.2f}", style="bold")
    table.caption = f"target {TARGET}; {1000 * (flown - bare) / stages:.0f} ms a stage"
    Console().print(table)
    return {"stages": stages, "dvc_repro_s": bare, "flow_s": flown, "ratio": ratio, "target": TARGET}


def fresh(workspace: Path) -> Path:
    lay_out(ROOT, workspace, (ROOT / "params.demo.yaml").read_text(encoding="utf-8"))
    return workspace


def timed(run: Any, workspace: Path, environment: dict[str, str]) -> tuple[float, int]:
    start = time.perf_counter()
    run(workspace, environment)
    seconds = time.perf_counter() - start
    return seconds, (workspace / "dvc.lock").read_text(encoding="utf-8").count("    cmd: ")


def dvc_repro(workspace: Path, environment: dict[str, str]) -> None:
    call([sys.executable, "-m", "dvc", "repro"], workspace, environment)


def flow(workspace: Path, environment: dict[str, str], *arguments: str) -> None:
    call([sys.executable, "-m", "flows.unlearn", *arguments], workspace, environment)


def call(command: list[str], workspace: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=workspace, env=environment, text=True, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[1:])}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


@contextmanager
def server(home: Path) -> Iterator[dict[str, str]]:
    """A Prefect server on loopback with its own home; yields the environment of those that talk to it."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "DVC_NO_ANALYTICS": "1",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{environment['PREFECT_API_URL']}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield environment
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    run()
