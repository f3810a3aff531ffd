"""Tests that the flow retries after a failure that may pass by itself, and not after one that would repeat."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

import psutil
import pytest

from tests.flows.service import lay_out_tiny, wait, with_dvc
from tests.pipeline import ENVIRONMENT, dvc

pytestmark = pytest.mark.slow
FLAKY = """\
  prepare:
    cmd: python flaky.py
    deps: [flaky.py]
    outs: [prepared]
"""
PASSES_AT = """\
import pathlib, sys
tries = pathlib.Path("tries.txt")
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
if len(tries.read_text()) < {at}:
    sys.exit("the source is away")
pathlib.Path("prepared").write_text("1")
"""


@pytest.fixture(scope="module", autouse=True)
def prefect():
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    made = with_dvc(lay_out_tiny(tmp_path / "workspace"))
    (made / "dvc.yaml").write_text((made / "dvc.yaml").read_text() + FLAKY)
    return made


def stage_of(process: psutil.Process) -> psutil.Process | None:
    """Return the process of the stage `long` below `process`, or None if it does not run."""
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # the child may end meanwhile
            if "hold.py" in child.cmdline():
                return child
    return None


def test_a_source_that_is_away_is_tried_three_times(workspace):
    from flows.unlearn import StageFailedError, unlearn

    (workspace / "flaky.py").write_text(PASSES_AT.format(at=2))
    assert unlearn(str(workspace), stages=["prepare"]) == {"prepare": "done"}
    assert (workspace / "tries.txt").read_text() == "x" * 2
    (workspace / "flaky.py").write_text(PASSES_AT.format(at=9))
    with pytest.raises(StageFailedError, match="the source is away"):
        unlearn(str(workspace), stages=["prepare"])
    assert (workspace / "tries.txt").read_text() == "x" * 5


def test_a_busy_workspace_is_waited_for(workspace):
    from flows.unlearn import unlearn

    (workspace / "hold").touch()
    dvc(workspace, "repro", "begin")
    other = psutil.Popen([sys.executable, "-m", "dvc", "repro", "long"], cwd=workspace, env=ENVIRONMENT)
    wait("the other process", 60, lambda: stage_of(other))
    began = time.monotonic()
    (workspace / "release.py").write_text("import pathlib, time\ntime.sleep(4)\npathlib.Path('hold').unlink()\n")
    subprocess.Popen([sys.executable, "release.py"], cwd=workspace)
    assert unlearn(str(workspace), stages=["long"]) == {"long": "up to date"}
    assert other.wait(180) == 0 and time.monotonic() - began > 4


def test_a_failure_that_would_come_again_is_not_repeated(workspace):
    from flows.unlearn import StageFailedError, unlearn

    (workspace / "hold.py").write_text("open('tries.txt', 'a').write('x')\nraise SystemExit('no')\n")
    with pytest.raises(StageFailedError, match="no"):
        unlearn(str(workspace), stages=["begin", "long"])
    assert (workspace / "tries.txt").read_text() == "x"


def ended(process: psutil.Process) -> bool | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        return True if process.status() == "zombie" else None
    return True


def test_a_flow_that_is_interrupted_takes_its_stage_with_it(workspace):
    """A cancelled run is interrupted in this way. Its stage must not change the workspace during the next run."""
    (workspace / "hold").touch()
    dvc(workspace, "repro", "begin")
    code = "from flows.unlearn import unlearn; unlearn('.', stages=['long'])"
    process = psutil.Popen([sys.executable, "-c", code], cwd=workspace, env={**ENVIRONMENT, "PYTHONPATH": "."})
    found = wait("the stage", 90, lambda: stage_of(process))
    started = process.children(recursive=True)
    process.terminate()
    process.wait(300)
    wait("the end of the stage", 20, lambda: ended(found))
    for other in started:  # Prefect does not end the server that it started for this run
        with contextlib.suppress(psutil.NoSuchProcess):
            other.kill()


def test_of_two_dvc_repro_at_once_one_works_and_the_other_says_so(workspace):
    (workspace / "hold").touch()
    first = psutil.Popen([sys.executable, "-m", "dvc", "repro", "fit"], cwd=workspace, env=ENVIRONMENT)
    wait("the stage", 60, lambda: stage_of(first))
    said = dvc(workspace, "repro", "fit", ok=False)
    assert "lock" in said and "Traceback" not in said and not (workspace / "held").exists()
    (workspace / "hold").unlink()
    assert first.wait(300) == 0
    assert "didn't change, skipping" in dvc(workspace, "repro", "fit") and (workspace / "fitted-loft").is_file()
