"""Test that what a process started ends with it, also if it is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from expunge.system import parent
from expunge.system.parent import ending_with_me

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent ended")
SLEEP = "import time; time.sleep(60)"
# A stage under DVC: this process has a child, which the package of the stages lets end with it.
STAGE = "import expunge.stages, time; print('ready', flush=True); time.sleep(60)"
STARTER = """
import subprocess, sys
from expunge.system.parent import ending_with_me
command = [sys.executable, "-c", sys.argv[1]]
child = subprocess.Popen(ending_with_me(command) if sys.argv[2] == "bound" else command, stdout=subprocess.PIPE)
if sys.argv[2] != "bound":
    child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def killed(code: str, how: str, **environment: str) -> psutil.Process:
    """Start a process with a child that runs `code`, kill the process, and return the child."""
    command = [sys.executable, "-c", STARTER, code, how]
    variables = {k: v for k, v in os.environ.items() if k != "DVC_STAGE"} | environment
    starter = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    child = psutil.Process(int(starter.stdout.readline()))
    if how == "bound":
        deadline = time.monotonic() + 60
        while parent.__file__ in child.cmdline() and time.monotonic() < deadline:
            time.sleep(0.05)
    starter.kill()
    starter.wait()
    return child


def ends(process: psutil.Process, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_bound_process_ends_with_the_one_that_was_killed():
    assert ends(killed(SLEEP, "bound"))


def test_a_stage_that_dvc_started_ends_with_dvc():
    assert ends(killed(STAGE, "stage", DVC_STAGE="fit@loft"))


def test_a_stage_whose_dvc_was_killed_before_it_began_does_not_run():
    ended = subprocess.Popen(["true"])  # a zombie until somebody waits for it
    while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    variables = os.environ | {"DVC_STAGE": "fit@loft", parent.DVC_PROCESS: str(ended.pid)}
    code = "import expunge.stages; print('runs')"
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
        assert done.returncode == 1 and done.stdout == ""
        ended.wait()
    variables[parent.DVC_PROCESS] = str(os.getpid())
    assert subprocess.run([sys.executable, "-c", code], env=variables).returncode == 0


def test_a_stage_that_was_started_by_hand_goes_on():
    child = killed(STAGE, "stage")
    assert not ends(child, 1)
    child.kill()


def test_the_command_is_run_as_it_is():
    command = [sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(3)", "a b", "--c"]
    done = subprocess.run(ending_with_me(command), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "['a b', '--c']\n")


def test_a_command_whose_starter_has_ended_does_not_begin():
    command = [sys.executable, parent.__file__, "1", "echo", "begun"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
