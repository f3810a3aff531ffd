"""Tests of the way from a verdict to a champion and its audit.

They run on a real Prefect server with a real worker, in a workspace whose pipeline is finished. Each goes on from
the one before.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request

import pytest

from tests.flows.service import Service, add_flows, wait
from tests.servers import tracking_server

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Run Prefect and the tracking server that the links in its artifacts lead to."""
    home = tmp_path_factory.mktemp("service")
    made = Service(home)
    with tracking_server(home) as address:
        made.environment |= {"MLFLOW_TRACKING_URI": address}
        yield made
        made.end()


@pytest.fixture(scope="module")
def workspace(service, finished, tmp_path_factory):
    made = tmp_path_factory.mktemp("deployed") / "workspace"
    shutil.copytree(finished, made, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts"))
    add_flows(made)
    service.deploy(made)
    service.worker(made)
    return made


def started_by_itself(service, name):
    """Wait for a run that an automation started, and return the id of the newest."""

    def ask():
        with service.client() as client:
            found = client.read_deployment_by_name(name)
            runs = [r for r in client.read_flow_runs() if r.deployment_id == found.id and not r.auto_scheduled]
        return runs[0].id if runs else None

    return wait(f"a run of {name} that a verdict started", 60, ask)


def resume(service, run_id, **answer):
    """Answer a paused run as the button of its form does, and return what the server says."""
    with service.client() as client:
        return client._client.post(f"/flow_runs/{run_id}/resume", json={"run_input": answer}).json()


def test_a_verdict_asks_a_person_whose_refusal_needs_a_reason(service, workspace):
    registered = service.until(service.request("unlearn/pipeline", stages=["register"], force=True), "Completed")
    artifacts = service.artifacts(registered.id)
    table = json.loads(artifacts["unlearning-table"].data)
    assert {"original", "retrained", "loft"} <= {row["method"] for row in table}
    result = artifacts["unlearning-result"].data
    assert str(workspace / "reports" / "report.html") in result and "Data Docs" in result
    assert_links_lead_somewhere(service, result)

    run = service.until(started_by_itself(service, "promote/promote"), "Paused")
    review = service.artifacts(run.id)["promotion-review"].data
    assert "Shown: **" in review and "passes the gates." in review
    assert resume(service, run.id, decision="promote", approver="J. Doe")["status"] == "REJECT"
    assert resume(service, run.id, decision="promote", approver="J. Doe", reason=" ")["status"] == "REJECT"
    assert resume(service, run.id, decision="perhaps", approver="J. Doe", reason="seen")["status"] == "REJECT"
    assert resume(service, run.id, decision="promote", reason="seen")["status"] == "REJECT"  # the approver is missing
    assert service.run(run.id).state.is_paused()
    answer = {"decision": "refuse", "approver": "J. Doe", "reason": "not before Monday"}
    assert resume(service, run.id, **answer)["status"] == "ACCEPT"
    assert "not before Monday" in service.until(run.id, "Refused").state.message
    assert not (workspace / "ledger.jsonl").exists()


def assert_links_lead_somewhere(service, markdown):
    """Assert that the links lead to the pipeline's run and to the report among its artifacts."""
    server = service.environment["MLFLOW_TRACKING_URI"]
    experiment, run = re.search(rf"\({server}/#/experiments/(\d+)/runs/(\w+)\)", markdown).groups()
    assert f"({server}/#/experiments/{experiment}/runs/{run}/artifacts/report.html)" in markdown
    with urllib.request.urlopen(f"{server}/api/2.0/mlflow/runs/get?run_id={run}") as answer:
        info = json.load(answer)["run"]
    assert info["info"]["experiment_id"] == experiment
    assert {"key": "role", "value": "pipeline"} in info["data"]["tags"]
    with urllib.request.urlopen(f"{server}/get-artifact?path=report.html&run_uuid={run}") as answer:
        assert b"<html" in answer.read(2000)


def test_a_person_promotes_and_is_not_asked_again(service, workspace):
    run = service.until(service.request("promote/promote"), "Paused")
    answer = {"decision": "promote", "approver": "J. Doe", "reason": "as good as retraining"}
    assert resume(service, run.id, **answer)["status"] == "ACCEPT"
    done = service.until(run.id, "Promoted")
    entry = json.loads((workspace / "ledger.jsonl").read_text().splitlines()[-1])
    assert entry["facts"]["reason"] == "as good as retraining" and entry["facts"]["who"] == "J. Doe"
    assert f"Version {entry['facts']['version']} is the champion" in done.state.message
    before = (workspace / "ledger.jsonl").read_bytes()
    assert service.until(service.request("promote/promote"), "Serves already")
    assert (workspace / "ledger.jsonl").read_bytes() == before


def test_the_audit_finds_what_serves_no_worse_and_then_worse(service, workspace):
    run = service.until(service.request("audit/audit", seeds=2, first_seed=5), "Completed", seconds=180)
    rows = json.loads(service.artifacts(run.id)["audit-table"].data)
    assert rows and {row["verdict"] for row in rows} == {"holds"}
    found = json.loads((workspace / "reports/audit.json").read_text())
    assert found["seeds"] == [5, 6] and not found["worsened"] and not found["ledger"]
    # The report is changed to that of a better model than the one that serves.
    (summary,) = (service.home / "files").rglob("summary.json")
    content = json.loads(summary.read_text())
    for block in content["methods"].values():
        block["divergence"]["forget"]["kl"] = 0.0
    summary.write_text(json.dumps(content))
    worse = service.until(service.request("audit/audit", seeds=1), "Failed", seconds=180)
    assert "divergence.forget.kl was 0.000" in worse.state.message and "worse by" in worse.state.message
    assert "Worse than its report" in service.artifacts(worse.id)["audit-result"].data


def test_the_command_audit_finds_the_same(service, workspace):
    done = subprocess.run(
        [sys.executable, "-m", "expunge.cli", "attack", "--seeds", "1"],
        cwd=workspace,
        env=service.environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 2 and "worse by" in done.stderr, done.stdout + done.stderr
