"""Tests of flows whose Prefect server dies in the middle.

A flow that a person started says so in one line, and the next run continues. A run that a worker started waits for the
server and goes on by itself.
"""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.flows.service import Service, lay_out_tiny, wait, with_dvc
from tests.flows.test_retries import stage_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("service")]
AWAY = 20  # seconds


@pytest.mark.long
def test_the_server_dies_while_a_stage_runs(tmp_path):
    service = Service(tmp_path / "home")
    workspace = with_dvc(lay_out_tiny(tmp_path / "workspace"))
    try:
        (workspace / "hold").touch()
        flow = service.start("flow", [sys.executable, "-m", "flows.unlearn"], workspace)
        wait(f"the stage\n{service.logs()}", 240, lambda: stage_of(flow))
        service.kill(service.server)
        (workspace / "hold").unlink()
        assert flow.wait(300) == 2
        output = (service.home / "flow.log").read_text()
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in output and len(errors) == 1, output
        assert service.url in errors[0] and "run again to continue" in errors[0]
        assert (workspace / "held").is_file()  # The stage went on without the server.

        service.serve()
        done = subprocess.run(
            [sys.executable, "-m", "flows.unlearn"],
            cwd=workspace,
            env=service.environment,
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        for name in ("begun", "held", "fitted-loft", "fitted-ru-linear"):
            assert (workspace / name).is_file()
    finally:
        service.end()


@pytest.mark.long
def test_a_run_of_a_worker_waits_for_a_server_that_died_and_came_back(tmp_path):
    service = Service(tmp_path / "home")
    workspace = with_dvc(lay_out_tiny(tmp_path / "workspace"))
    try:
        service.deploy(workspace)
        worker = service.worker(workspace)
        (workspace / "hold").touch()
        run = service.request("unlearn/pipeline")
        wait(f"the stage\n{service.logs()}", 240, lambda: stage_of(worker))
        service.kill(service.server)
        (workspace / "hold").unlink()
        time.sleep(AWAY)
        assert (workspace / "held").is_file()  # The stage went on without the server.

        service.serve()
        done = service.until(run, "Completed", seconds=300)
        assert service.tasks(done.id) == dict.fromkeys(["begin", "long", "fit@loft", "fit@ru-linear"], "Completed")
        assert worker.is_running()
        service.until(service.request("nightly/nightly"), "Up to date", seconds=300)
    finally:
        service.end()
