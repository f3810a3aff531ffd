"""Test that nothing outside the machine is reached, nor tried, and that the tools report no usage by default."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
import yaml

from tests import offline
from tests.pipeline import ENVIRONMENT, lay_out

needs_unshare = pytest.mark.skipif(not offline.permitted(), reason="the kernel forbids a network of our own here")
EXPUNGE = [sys.executable, "-m", "expunge.cli"]
TOOLS = """
from expunge.stages import guarded

def look():
    import os
    import dvc.analytics, huggingface_hub.constants, mlflow.telemetry.utils, prefect.settings
    import expunge.tracking
    print(
        mlflow.telemetry.utils.is_telemetry_disabled(),
        huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY,
        not prefect.settings.get_current_settings().server.analytics_enabled,
        not dvc.analytics.is_enabled(),
        os.environ["GX_ANALYTICS_ENABLED"] == "false",
    )

guarded(look)
"""


@needs_unshare
def test_the_recorder_sees_an_attempt_and_the_attempt_fails(tmp_path):
    """Without this the other tests could pass although something is reached."""
    env = offline.environment(ENVIRONMENT, tmp_path)
    for host in ("192.0.2.1", "example.org"):
        code = f"import socket; socket.create_connection(({host!r}, 80), timeout=5)"
        assert offline.run([sys.executable, "-c", code], tmp_path, env).returncode != 0
    assert "socket.connect 192.0.2.1 " in (tmp_path / "connections").read_text()
    assert "getaddrinfo example.org" in (tmp_path / "connections").read_text()
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
        assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0
    assert "127.0.0.1" not in (tmp_path / "connections").read_text()


@needs_unshare
@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("--help", 0, "handle erasure requests"),
        ("check", 0, "nothing wrong"),
        ("show", 2, "reports/summary.json"),
        ("request list", 0, "asks for"),
    ],
)
def test_a_command_needs_no_connection(command, status, said, tmp_path):
    workspace = lay_out(tmp_path / "workspace")
    env = offline.environment(ENVIRONMENT, tmp_path / "record")
    done = offline.run([*EXPUNGE, *command.split()], workspace, env)
    assert done.returncode == status and said in done.stdout + done.stderr, done.stdout + done.stderr
    assert (tmp_path / "record/connections").read_text() == ""


@pytest.mark.slow
def test_the_tools_report_no_usage_by_default(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TOOLS], env=offline.environment(ENVIRONMENT, tmp_path), text=True, capture_output=True
    )
    assert done.stdout.split() == ["True"] * 5, done.stdout + done.stderr[-2000:]


@needs_unshare
@pytest.mark.slow
def test_the_pipeline_needs_no_connection(short):
    stages = yaml.safe_load((short / "dvc.lock").read_text())["stages"]
    assert {"prepare", "train", "retrain@1", "report", "register"} <= set(stages)
    assert (short.parent / "record/connections").read_text() == ""
