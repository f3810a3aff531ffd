"""Tests of the `erasure` flow on a real Prefect server: intake by path, the approval form and the artifacts.

The steps themselves are in the library, whose tests are the other files of this folder.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import chdir
from pathlib import Path

import pytest

from expunge.erasure.batches import Batches, Step
from expunge.erasure.requests import Store
from expunge.erasure.states import State
from expunge.system.files import read_json
from tests.erasure.promoted_batch import PRODUCT, RUN, TODAY
from tests.pipeline import ENVIRONMENT, change, dvc
from tests.sweep import people_workspace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def prefect():
    """Run a temporary Prefect server with its own home."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in ENVIRONMENT.items():
        if name not in ("PREFECT_HOME", "PYTEST_CURRENT_TEST"):
            monkeypatch.setenv(name, value)


def artifacts() -> dict:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return {a.key: a for a in sorted(client.read_artifacts(), key=lambda a: a.created)}


def parameters_seen() -> str:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return str([run.parameters for run in client.read_flow_runs()])


@pytest.mark.long
def test_a_path_is_taken_in_and_what_is_verified_is_carried_out(tmp_path, monkeypatch):
    """The request is for test rows only, so no model is needed. The pipeline is two stages that change nothing."""
    from flows.erasure import erasure

    root = people_workspace.workspace(tmp_path / "workspace", [5])
    dvc(root, "init", "--no-scm", "--quiet")
    (root / "dvc.yaml").write_text("stages:\n  prepare: {cmd: 'true'}\n  validate-dataset: {cmd: 'true'}\n")
    # The dataset has three classes, and a flow checks the params before anything else.
    change(root, lambda p: p["split"].update(classes=[2]))
    (tmp_path / "ids.txt").write_text("record-00004\nrecord-00009\n")
    first = erasure(str(root), ids_file=str(tmp_path / "ids.txt"), basis="GDPR Art. 17", return_state=True)
    assert first.name == "NothingToDo"
    with chdir(root):
        store = Store.open()
        request = store.all()[0]
        assert request.state == State.received and request.basis == "GDPR Art. 17" and request.asked == 2
        table = artifacts()["erasure-requests"]
        assert request.id in str(table.data) and "1 open requests, none of them urgent" in table.description
        store.verify(request.id, "ben", "", {})
        second = erasure(str(root), return_state=True)
        assert second.is_completed() and "1 requests completed" in second.message, second
        assert store.get(request.id).state == State.completed
        assert request.id in artifacts()["erasure-certificate"].description
        store.engine.dispose()
    assert "record-" not in parameters_seen() + str([a.data for a in artifacts().values()])


def test_a_person_is_asked_and_the_answer_carried_out(copy, monkeypatch):
    """The pipeline forgot class 5, and the batch waits for approval of the version that the run registered."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
    from prefect.flow_runs import resume_flow_run

    from flows.erasure import erasure

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy / 'mlflow.db'}")
    change(copy, lambda p: p["sweep"].update(original="keep"))
    with chdir(copy):
        receipt = read_json("reports/registration.json")
        store = Store.open()
        request = store.add("R-20260220-0a1b2c", "classes", [], classes=[5], received=TODAY, basis="", who="ann")
        store.verify(request.id, "ben", "", {})
        batches = Batches(store, "nightly")
        batch = batches.claim(TODAY)
        product = {
            **PRODUCT,
            "model": receipt["model"],
            "version": "1",
            "method": receipt["method"],
            "claims": "outputs",
        }
        facts = {"product": product, "run": {**RUN, "each": {request.id: {"train": 1, "test": 0}}}}
        batches.release(batches.at(batch, Step.approval, facts, State.awaiting_approval, "verdict"))

        def answer() -> None:
            paused = FlowRunFilter(name=FlowRunFilterName(like_="erasure requests"))
            with get_client(sync_client=True) as client:
                for _ in range(600):
                    runs = [r for r in client.read_flow_runs(flow_run_filter=paused) if r.state.name == "Paused"]
                    if runs:
                        break
                    time.sleep(0.5)
            given = {"decision": "promote", "reason": "as good as retrained", "approver": "J. Doe"}
            resume_flow_run(runs[0].id, run_input=given)

        person = threading.Thread(target=answer)
        person.start()
        try:
            state = erasure(str(copy), return_state=True)
        finally:
            person.join()
        assert state.is_completed() and "1 requests completed" in state.message, state
        body = read_json(Path("records/certificates") / request.id / "certificate.json")["certificate"]
        assert body["unlearning"]["approval"] == {"by": "J. Doe", "because": "as good as retrained"}
        assert body["sweep"]["left"] == []
        store.engine.dispose()
