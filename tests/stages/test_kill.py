"""Test that the pipeline may be killed at any moment: the next `dvc repro` continues, and the end is the same.

Each run of `dvc repro` is killed with SIGKILL at a drawn request to the file system, in DVC or in one of its stages.
`EXPUNGE_KILLS` sets how many kills there are; pipelines are begun until that number is reached.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from expunge.system.cut_off import set_aside
from expunge.system.dvc_lock import differences, stages_of
from tests.killing import KILL_AT
from tests.pipeline import ENVIRONMENT, lay_out_short

KILLS = int(os.environ.get("EXPUNGE_KILLS", "3"))
# TO_KILL is WHO:PROCESS:EVENT:HOW.
KILLER = (
    KILL_AT
    + """
WHO, PROCESS, EVENT, HOW = os.environ["TO_KILL"].split(":")

def arm():
    kill_at(int(EVENT), f"{sys.orig_argv[1:]} {EVENT} {HOW}", lambda: 0 if HOW == "all" else os.getpid())

if sys.orig_argv[1:3] == ["-m", "dvc"] and WHO == "dvc":
    arm()
elif len(sys.orig_argv) > 2 and sys.orig_argv[2].startswith("expunge.stages.") and WHO == "stage":
    with open(HOME + "/started", "a") as started:
        started.write("x")
    if os.path.getsize(HOME + "/started") == int(PROCESS):
        arm()
"""
)


@pytest.mark.slow
@pytest.mark.timeout(KILLS * 120 + 3000)
def test_killed_at_drawn_moments(short, tmp_path):
    wanted = stable(short)
    killed = rounds = 0
    while killed < KILLS:
        rng = np.random.default_rng(rounds)
        workspace = lay_out_short(tmp_path / str(rounds) / "workspace")
        while killed < KILLS and (again := killed_once(workspace, rng)) is not None:
            killed += again
        set_aside(workspace)
        done = run(workspace, ENVIRONMENT)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert stable(workspace) == wanted
        rounds += 1
    print(f"{killed} kills in {rounds} pipelines")


def killed_once(workspace: Path, rng: np.random.Generator) -> int | None:
    """Run `dvc repro` with a kill; return 1 if it came, 0 if the process ended before, None if the pipeline is done."""
    home = workspace.parent
    (home / "sitecustomize.py").write_text(KILLER)
    for name in ("started", "killed"):
        (home / name).write_text("")
    who = str(rng.choice(["stage", "stage", "stage", "dvc"]))
    event = int(rng.integers(1, {"stage": 25, "dvc": 120}[who]))
    order = f"{who}:{rng.integers(1, 4)}:{event}:{rng.choice(['one', 'all'])}"
    path = f"{home}:{ENVIRONMENT['PYTHONPATH']}" if "PYTHONPATH" in ENVIRONMENT else str(home)
    done = run(workspace, {**ENVIRONMENT, "PYTHONPATH": path, "TO_KILL": order, "KILLER": str(home)})
    killed = (home / "killed").read_text()
    with (home / "log").open("a") as log:
        log.write(f"{order} {done.returncode} {killed or 'not killed'}\n")
    if not killed:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return None
    assert done.returncode != 0
    set_aside(workspace)
    check_recorded(workspace)
    return 1


def check_recorded(workspace: Path) -> None:
    """Assert that what dvc.lock records as finished is there, and whole."""
    with chdir(workspace):
        if Path("dvc.lock").is_file():
            found = differences(stages_of(Path("dvc.lock"), "python -m expunge.stages."))
            assert not [d for d in found if d.wrote]


def run(workspace: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dvc", "repro"]
    return subprocess.run(
        command, cwd=workspace, env=environment, text=True, capture_output=True, start_new_session=True
    )


def stable(workspace: Path) -> dict[str, Any]:
    """Return the stages of dvc.lock without the code, the outputs that contain times, and what is made of these."""
    stages = yaml.safe_load((workspace / "dvc.lock").read_text())["stages"]
    timed = [o["path"] for name in ("compare", "report", "register") for o in stages[name]["outs"]]
    timed += [o["path"] for name, stage in stages.items() if name.startswith("fit@") for o in stage["outs"]]

    def told(entries: list[dict[str, Any]]) -> dict[str, str]:
        retained = [e for e in entries if e["path"] not in timed and not e["path"].startswith(("src/", "reports/cost"))]
        return {e["path"]: e["md5"] for e in retained}

    return {
        name: {"deps": told(s.get("deps", [])), "outs": told(s["outs"]), "params": s.get("params")}
        for name, s in stages.items()
    }
