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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from expunge.workspaces.workspace import lay_out

ROOT = Path(__file__).parents[1]
TARGET = 1.1


def run() -> dict[str, Any]:
    """Seconds of both on fresh workspaces, one after the other; their ratio. Stages compute on one thread.

    Processor seconds, of the processes started here and below, stand beside: on a machine that others use too, they
    are what can be compared.
    """
    with tempfile.TemporaryDirectory() as tmp, server(Path(tmp) / "prefect") as environment:
        # Imports and the server's caches. No process stays from which the stages of the flow below could fork.
        flow(fresh(Path(tmp) / "warm"), {**environment, "EXPUNGE_WARM": "0"}, "--stages", "prepare")
        bare = timed(dvc_repro, fresh(Path(tmp) / "bare"), environment)
        flown = timed(flow, fresh(Path(tmp) / "flow"), environment)
        lock = (Path(tmp) / "flow" / "dvc.lock").read_text(encoding="utf-8")
    stages = lock.count("    cmd: ")
    wall, cpu = flown["wall_s"] / bare["wall_s"], flown["cpu_s"] / bare["cpu_s"]
    table = Table("", "seconds", "of processor time", title=f"{stages} stages on digits")
    table.add_row("dvc repro", f"{bare['wall_s']:.1f}", f"{bare['cpu_s']:.1f}")
    table.add_row("flow, running server", f"{flown['wall_s']:.1f}", f"{flown['cpu_s']:.1f}")
    table.add_row("ratio", f"{wall:.2f}", f"{cpu:.2f}", style="bold")
    table.caption = f"target {TARGET}; {1000 * (flown['wall_s'] - bare['wall_s']) / stages:.0f} ms a stage"
    Console().print(table)
    return {"stages": stages, "dvc_repro": bare, "flow": flown, "ratio": wall, "cpu_ratio": cpu, "target": TARGET}


def one_thread() -> dict[str, str]:
    """Return the environment of stages that compute on one thread and log to the workspace's own store."""
    given = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**given, "PATH": path, "OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "true", "DVC_NO_ANALYTICS": "1"}


def fresh(workspace: Path) -> Path:
    lay_out(ROOT, workspace, (ROOT / "params.demo.yaml").read_text(encoding="utf-8"))
    return workspace


def timed(
    run: Callable[[Path, dict[str, str]], None], workspace: Path, environment: dict[str, str]
) -> dict[str, float]:
    before, start = os.times(), time.perf_counter()
    run(workspace, environment)
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return {"wall_s": wall, "cpu_s": cpu}


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
        **one_thread(),
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
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
