"""A real Prefect server and real workers on loopback, and a workspace of few stages that they run in."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml

from tests.pipeline import ENVIRONMENT, ROOT, dvc
from tests.servers import free_port

T = TypeVar("T")
# Three kinds of stages: a quick one, one that runs as long as the file `hold` exists, and a matrix.
STAGES = """\
stages:
  begin:
    cmd: python -c "open('begun','w').write('1')"
    params: [data]
    outs: [begun]
  long:
    cmd: python hold.py
    deps: [begun, hold.py]
    outs: [held]
  fit:
    matrix:
      method: [loft, ru-linear]
    cmd: python -c "open('fitted-${item.method}','w').write('1')"
    deps: [held]
    outs: ['fitted-${item.method}']
"""
HOLD = """\
import pathlib, time
from expunge.system import progress
progress.SECONDS_BETWEEN_LINES = 2.0
with progress.progress("hold", 10_000, "looks") as advance:
    while pathlib.Path("hold").exists():
        advance(1)
        time.sleep(0.2)
pathlib.Path("held").write_text("1")
"""
# The params are complete, because a flow checks them first; the graph above uses only `data`.
_DEMO = yaml.safe_load((ROOT / "params.demo.yaml").read_text())
PARAMS = yaml.safe_dump(_DEMO)
OTHER_PARAMS = yaml.safe_dump({**_DEMO, "data": {**_DEMO["data"], "seed": 1}})


def lay_out_tiny(workspace: Path) -> Path:
    """Write what a deployment needs of a repository: the flows, prefect.yaml, and a pipeline."""
    workspace.mkdir(parents=True)
    (workspace / "dvc.yaml").write_text(STAGES)
    (workspace / "params.yaml").write_text(PARAMS)
    (workspace / "hold.py").write_text(HOLD)
    (workspace / ".gitignore").write_text("/begun\n/held\n/fitted-*\n/hold\n__pycache__/\n.expunge/\n")
    add_flows(workspace)
    return workspace


def add_flows(workspace: Path) -> None:
    shutil.copy(ROOT / "prefect.yaml", workspace / "prefect.yaml")
    shutil.copytree(
        ROOT / "flows", workspace / "flows", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
    )


def with_dvc(workspace: Path) -> Path:
    dvc(workspace, "init", "--no-scm", "--quiet")
    return workspace


def wait(what: str, seconds: float, ask: Callable[[], T | None]) -> T:
    """Call `ask` until it returns a value other than None, and return that. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (answer := ask()) is not None:
            return answer
        time.sleep(0.3)
    raise AssertionError(f"{what}: nothing within {seconds:.0f} s")


class Service:
    """One server with its own home, and the processes that talk to it. `end` leaves none of them behind."""

    def __init__(self, home: Path, database: str | None = None) -> None:
        self.home, self.processes, port = home, [], free_port()
        home.mkdir(parents=True, exist_ok=True)
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            **ENVIRONMENT,
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "true",
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "3",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            **({"PREFECT_API_DATABASE_CONNECTION_URL": database} if database else {}),
        }
        self.port = port
        self.serve()

    def serve(self) -> None:
        """Start the server, at first or again with the same address and database."""
        command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(self.port)]
        self.server = self.start("server", command, self.home)
        try:
            wait("the server's health", 300, self._healthy)
        except AssertionError:
            self.end()
            raise

    def _healthy(self) -> bool | None:
        try:
            with urllib.request.urlopen(f"{self.url}/api/health", timeout=5):
                return True
        except OSError:
            return None

    def start(self, name: str, command: list[str], cwd: Path) -> psutil.Process:
        with (self.home / f"{name}.log").open("a") as log:
            process = psutil.Popen(
                command, cwd=cwd, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def deploy(self, workspace: Path, *arguments: str) -> str:
        command = [sys.executable, "-m", "expunge.cli", "deploy", *arguments]
        done = subprocess.run(command, cwd=workspace, env=self.environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def worker(self, workspace: Path, name: str = "worker") -> psutil.Process:
        return self.start(name, [sys.executable, "-m", "expunge.cli", "worker", "--name", name], workspace)

    def client(self) -> Any:
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(f"{self.url}/api")

    def request(self, deployment: str, **parameters: Any) -> Any:
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def run(self, run_id: Any) -> Any:
        with self.client() as client:
            return client.read_flow_run(run_id)

    def until(self, run_id: Any, *names: str, seconds: float = 600) -> Any:
        """Wait until the state of the run has one of these names. Any other final state fails with its reason."""

        def ask() -> Any:
            run = self.run(run_id)
            if run.state.name in names:
                return run
            assert not run.state.is_final(), f"{run.name}: {run.state.name}: {run.state.message}\n{self.logs()}"
            return None

        try:
            return wait(f"{' or '.join(names)}", seconds, ask)
        except AssertionError as e:
            raise AssertionError(f"{e}\nnow {self.run(run_id).state}\n{self.logs()}") from None

    def tasks(self, run_id: Any) -> dict[str, str]:
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        with self.client() as client:
            found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
        return {task.name: task.state.name for task in found}

    def artifacts(self, run_id: Any) -> dict[str, Any]:
        with self.client() as client:
            return {a.key: a for a in client.read_artifacts() if a.flow_run_id == run_id}

    def logs(self) -> str:
        return "".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.home.glob("*.log")))

    @staticmethod
    def kill(process: psutil.Process) -> None:
        """Kill the process and all of its descendants at once, as when the machine is switched off."""
        ended = contextlib.suppress(psutil.NoSuchProcess)  # any of them may end by itself meanwhile
        everyone = [process]
        with ended:
            everyone += process.children(recursive=True)
        for one in everyone:
            with ended:
                one.suspend()
        with ended:
            everyone += process.children(recursive=True)
        for one in everyone:
            with ended:
                one.kill()
        psutil.wait_procs(everyone, timeout=20)

    def end(self) -> None:
        for process in reversed(self.processes):
            if process.is_running():
                self.kill(process)
        assert os.environ.get("PREFECT_API_URL") != f"{self.url}/api"
