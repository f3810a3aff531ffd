"""Test that the process of a flow may be killed at any moment: nothing goes on writing, and the next run continues.

DVC or a stage, at a drawn request to the file system, kills the flow that started it, or the flow does so itself.
`EXPUNGE_FLOW_KILLS` sets how often, `EXPUNGE_KILL_SEED` at which moments. tests/stages/test_kill.py kills DVC and the
stages.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import chdir, closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from expunge.data.dataset import Dataset
from expunge.erasure import intake
from expunge.erasure.certificate import verify
from expunge.erasure.requests import Store
from expunge.erasure.states import State
from expunge.ledger.keys import public_key
from expunge.ledger.ledger import Ledger
from expunge.system.cut_off import set_aside
from expunge.system.paths import CERTIFICATES
from tests.erasure.promoted_batch import TODAY
from tests.flows.service import Service, add_flows, wait
from tests.killing import KILL_AT
from tests.pipeline import change, dvc
from tests.stages.test_kill import stable
from tests.sweep import people_workspace
from tests.system.test_storage import left_behind

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("service")]
KILLS = int(os.environ.get("EXPUNGE_FLOW_KILLS", "4"))
SEED = int(os.environ.get("EXPUNGE_KILL_SEED", "0"))
# TO_KILL is WHO:EVENT, and the file `flow` has the number of the process.
KILLER = (
    KILL_AT
    + """
import atexit
WHO, EVENT = os.environ["TO_KILL"].split(":")  # EVENT 0: never

def flow():
    with open(HOME + "/flow") as flow:
        return int(flow.read())

ARGUMENTS = " ".join(sys.orig_argv[1:])
if ARGUMENTS.startswith("-m flows."):
    with open(HOME + "/flow", "w") as running:
        running.write(str(os.getpid()))
    if WHO == "flow":
        kill_at(int(EVENT), f"{WHO} {EVENT}", flow)
        atexit.register(lambda: open(HOME + "/events", "w").write(str(seen)))
elif WHO == "dvc" and ARGUMENTS.startswith("-m expunge.system.dvc_command repro"):
    kill_at(int(EVENT), f"{WHO} {EVENT}", flow)
elif WHO == "stage" and ARGUMENTS.startswith("-m expunge.stages."):
    kill_at(int(EVENT), f"{WHO} {EVENT}", flow)
"""
)


@pytest.mark.long
@pytest.mark.timeout(KILLS * 240 + 3600)
def test_a_flow_is_killed_at_drawn_moments(short, tmp_path):
    home = tmp_path / "home"
    workspace = Path(shutil.copytree(short, tmp_path / "workspace", symlinks=True))
    names = list(yaml.safe_load((short / "dvc.lock").read_text())["stages"])
    service = Service(home)
    try:
        rng, killed = np.random.default_rng(SEED), 0
        while killed < KILLS:
            name, who = str(rng.choice(names)), str(rng.choice(["stage", "stage", "dvc"]))
            event = int(rng.integers(1, {"stage": 16, "dvc": 80}[who]))
            killed += killed_once(service, workspace, name, f"{who}:{event}")
        done = run(service, workspace, "flows.unlearn", "--force")  # DVC is to run the stages, not to recall them
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert stable(workspace) == stable(short)
        assert measured(workspace) == measured(short)
        assert not left_behind(workspace) and not working_in(workspace)
        with closing(sqlite3.connect(workspace / "mlflow.db")) as c:
            assert not c.execute("SELECT * FROM runs WHERE status = 'RUNNING'").fetchall()
    finally:
        service.end()


def killed_once(service: Service, workspace: Path, name: str, order: str) -> bool:
    """Have a flow run the stage `name` again and be killed; return whether the moment came before the end.

    Asserts that nothing that the flow started is left.
    """
    done = run(service, workspace, "flows.unlearn", "--stages", name, "--force", to_kill=order)
    said = (service.home / "killed").read_text()
    print(f"{name}: {said.strip() or f'{order}: it ended before'}", flush=True)
    if not said:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return False
    assert done.returncode == -9
    wait("the end of what the flow started", 20, lambda: True if not working_in(workspace) else None)
    set_aside(workspace)
    return True


def run(
    service: Service, workspace: Path, *arguments: str, to_kill: str = "flow:0"
) -> subprocess.CompletedProcess[str]:
    """Run `python -m ARGUMENTS`, a flow that is killed as `to_kill` says (see KILLER)."""
    home = service.home
    (home / "sitecustomize.py").write_text(KILLER)
    (home / "killed").write_text("")
    path = os.pathsep.join(filter(None, [str(home), service.environment.get("PYTHONPATH")]))
    given = {**service.environment, "PYTHONPATH": path, "TO_KILL": to_kill, "KILLER": str(home)}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=workspace, env=given, text=True, capture_output=True, timeout=3000)


def working_in(workspace: Path) -> list[str]:
    """Return the command lines of the processes whose working folder is the workspace."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == workspace:
                found.append(" ".join(process.cmdline()))
    return found


def measured(workspace: Path) -> Any:
    """Return what the summary says, without costs, which are seconds and memory."""

    def without_costs(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_costs(v) for k, v in value.items() if k != "cost"}
        return [without_costs(v) for v in value] if isinstance(value, list) else value

    return without_costs(json.loads((workspace / "reports/summary.json").read_text()))


@pytest.mark.long
@pytest.mark.timeout(KILLS * 240 + 1800)
def test_the_flow_of_requests_is_killed_at_drawn_moments(tmp_path):
    """A request for test rows needs no model, so the flow goes from the verified request to its certificate."""
    before = requested(tmp_path / "before")
    service = Service(tmp_path / "home")
    try:
        undisturbed = Path(shutil.copytree(before, tmp_path / "undisturbed"))
        done = run(service, undisturbed, "flows.erasure")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        check_completed(service, undisturbed, told=1)
        events = int((service.home / "events").read_text())
        rng, killed, rounds = np.random.default_rng(SEED), 0, 0
        while killed < KILLS:
            workspace = Path(shutil.copytree(before, tmp_path / f"killed-{rounds}"))
            while True:
                event = int(rng.integers(1, events + 1))
                done = run(service, workspace, "flows.erasure", to_kill=f"flow:{event}")
                print((service.home / "killed").read_text().strip() or f"{event}: it ended before", flush=True)
                if done.returncode != -9:
                    break
                killed += 1
                wait("the end of what the flow started", 20, lambda w=workspace: True if not working_in(w) else None)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            rounds += 1
            check_completed(service, workspace, told=1 + rounds)
    finally:
        service.end()


def requested(root: Path) -> Path:
    """Return a workspace with a verified request for two test rows."""
    people_workspace.workspace(root, [5])
    dvc(root, "init", "--no-scm", "--quiet")
    (root / "dvc.yaml").write_text("stages:\n  prepare: {cmd: 'true'}\n  validate-dataset: {cmd: 'true'}\n")
    change(root, lambda p: p["split"].update(classes=[2]))
    add_flows(root)
    with chdir(root):
        store = Store.open(f"sqlite:///{root / 'records/requests.db'}")
        (root / "ids.txt").write_text("record-00004\nrecord-00009\n")
        request = intake.take_in(store, ids=root / "ids.txt", basis="", received=TODAY, today=TODAY, who="ann")
        (root / "ids.txt").unlink()
        store.verify(request.id, "ben", "", {})
        store.engine.dispose()
    return root


def check_completed(service: Service, workspace: Path, told: int) -> None:
    """Assert that the request is completed once, its rows are gone, and at least `told` artifacts tell of it in all."""
    with chdir(workspace):
        store, ledger = Store.open(f"sqlite:///{workspace / 'records/requests.db'}"), Ledger(Path("ledger.jsonl"))
        (request,) = store.all()
        assert request.state == State.completed and not store.has_key(request.id)
        kinds = [e.kind for e in ledger.entries()]
        assert kinds == ["intake", "verification", "scheduling", "run", "sweep", "completion"]
        assert ledger.verify(store.entries()) == 6
        body = verify(CERTIFICATES / request.id / "certificate.json", public_key(Path()))
        assert body["sweep"]["left"] == [] and body["clock"] == []
        assert not {"record-00004", "record-00009"} & set(Dataset("data/dataset").sample_ids())
        assert not list(Path("data/requests").glob("R-*")) and not Path(".expunge/requests-to-end.json").exists()
        store.engine.dispose()
    with service.client() as client:
        assert sum(a.key == "erasure-certificate" for a in client.read_artifacts()) >= told
