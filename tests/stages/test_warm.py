"""A test that a pipeline whose stages are forked from a warm process ends with the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from expunge.system import warm
from tests.pipeline import ENVIRONMENT, lay_out_short
from tests.stages.test_kill import run, stable
from tests.system.test_warm import PLACE, python, ready, until

# Python imports a module of this name at its start. It notes each process that imports torch.
RECORDER = """
import os, sys

def note(name, arguments):
    if name == "import" and arguments[0] == "torch":
        with open(os.path.join(os.path.dirname(__file__), "importers"), "a") as file:
            file.write(" ".join(sys.orig_argv[1:3]) + "\\n")

sys.addaudithook(note)
"""
# This server outlives stages that do not use it, however slow the machine is.
SERVER = """
import sys
from expunge.system import warm_server
warm_server.IDLE = 3600
warm_server.main(warm_server.Path(sys.argv[1]))
"""
OWN = {
    "-m expunge.stages.train",
    "-m expunge.stages.extract",
    "-m expunge.stages.activations",
    "-m expunge.stages.prepare",
}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not warm.supported(), reason="this system has no pidfd_open")
def test_a_pipeline_in_forks_ends_with_the_same_bytes(short, tmp_path, run_dir):
    (tmp_path / "sitecustomize.py").write_text(RECORDER)
    env = {**ENVIRONMENT, "XDG_RUNTIME_DIR": str(run_dir)}
    del env["EXPUNGE_WARM"]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tmp_path), env.get("PYTHONPATH")]))
    workspace = lay_out_short(tmp_path / "workspace")
    place = Path(python(PLACE, cwd=workspace, env=env)[0])
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(place)], cwd="/", env=env)
    until(lambda: ready(place), seconds=120)
    done = run(workspace, env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert server.poll() is None
    server.kill()
    server.wait()
    importers = set((tmp_path / "importers").read_text().splitlines())
    assert "-m expunge.stages.train" in importers
    assert {i for i in importers if "stages" in i} <= OWN
    assert stable(workspace) == stable(short)
