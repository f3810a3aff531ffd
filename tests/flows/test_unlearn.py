"""Tests that the flow runs the same graph of stages as `dvc repro`, with the same results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline import ENVIRONMENT, change, dvc

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def prefect():
    """Run a temporary Prefect server with its own home."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.fixture
def workspace(copy, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return copy


def test_every_stage_runs_after_the_stages_it_depends_on(workspace):
    from flows.unlearn import stage_names

    names = stage_names(workspace)
    graph = dvc(workspace, "dag", "--dot")
    edges = [
        tuple(part.strip().strip('";') for part in line.split("->")) for line in graph.splitlines() if "->" in line
    ]
    assert edges
    for before, after in edges:
        assert names.index(before) < names.index(after)


def test_the_flow_writes_the_lock_that_dvc_repro_wrote(workspace):
    """DVC's run cache gives the same measured times. Only the first stages are really run again."""
    from flows.unlearn import unlearn

    lock = workspace / "dvc.lock"
    by_hand = lock.read_bytes()
    lock.unlink()
    outcome = unlearn(str(workspace))
    assert set(outcome.values()) <= {"done", "up to date"}
    assert lock.read_bytes() == by_hand
    (workspace / "reports/code.json").unlink()  # as in a fresh clone; DVC needs it for any stage
    again = unlearn(str(workspace), stages=["prepare", "split"], force=True)
    assert again == {"code": "done", "prepare": "done", "split": "done"}
    assert lock.read_bytes() == by_hand


def test_a_run_without_anything_stale_does_nothing(workspace):
    from flows.unlearn import unlearn

    assert set(unlearn(str(workspace), stages=["prepare", "train", "compare"]).values()) == {"up to date"}


def test_a_failed_stage_fails_the_flow_with_its_error_line(workspace):
    from flows.unlearn import StageFailedError, unlearn

    manifest = workspace / "data/features/original/manifest.json"
    whole = manifest.read_bytes()
    manifest.unlink()  # it may be a link into DVC's cache
    manifest.write_text("{")
    change(workspace, lambda p: p["split"].update(classes=[4]))
    with pytest.raises(StageFailedError, match=r"manifest\.json"):
        unlearn(str(workspace), stages=["split"])
    manifest.write_bytes(whole)
    change(workspace, lambda p: p["split"].update(classes=[5]))
    assert unlearn(str(workspace), stages=["split"])["split"] in ("done", "up to date")


def test_params_that_cannot_be_are_found_before_a_stage_runs(workspace):
    from flows.unlearn import PreflightError, unlearn

    lock = (workspace / "dvc.lock").read_bytes()
    change(workspace, lambda p: p["split"].update(classes=["ankle"]))
    with pytest.raises(PreflightError, match="unknown class 'ankle'"):
        unlearn(str(workspace), stages=["split"])
    change(workspace, lambda p: p["split"].update(classes=[5]))
    assert (workspace / "dvc.lock").read_bytes() == lock


@pytest.mark.long
def test_classes_and_methods_of_the_form_are_written_to_params(workspace):
    from prefect.utilities.callables import parameter_schema

    from flows.unlearn import PreflightError, unlearn

    for name in ("classes", "methods"):
        asked = parameter_schema(unlearn).properties[name]
        assert "written to params.yaml" in asked["description"] and asked["examples"]
    params, own = workspace / "params.yaml", (Path(__file__).parents[2] / "params.demo.yaml").read_text()
    params.write_text(own)
    for wrong, words in ((["ankle"], "unknown class 'ankle'"), (["3", "no-such"], "no-such")):
        with pytest.raises(PreflightError, match=words):
            unlearn(str(workspace), stages=["split"], classes=wrong)
        assert params.read_text() == own
    with pytest.raises(PreflightError, match="in a clone"):
        unlearn(str(workspace), stages=["split"], classes=["3"], push=True)
    unlearn(str(workspace), stages=["split"], classes=["3"], methods=["logit-mask", "loft"])
    assert json.loads((workspace / "data/split/request.json").read_text())["whole_classes"] == [3]
    written = params.read_text()
    assert "methods: [logit-mask, loft]" in written and "# retrain | skip" in written
    assert len(written.splitlines()) == len(own.splitlines())


def test_a_tracking_server_that_is_away_is_found_before_the_work_starts(workspace, monkeypatch):
    from flows.unlearn import PreflightError, unlearn

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    lock = (workspace / "dvc.lock").read_bytes()
    with pytest.raises(PreflightError, match=r"error: http://127\.0\.0\.1:9: no tracking server answers"):
        unlearn(str(workspace), force=True)
    assert (workspace / "dvc.lock").read_bytes() == lock


def test_the_result_is_an_artifact(workspace):
    from prefect.client.orchestration import get_client

    from flows.unlearn import unlearn

    unlearn(str(workspace), stages=["compare"])
    with get_client(sync_client=True) as client:
        found = [a for a in client.read_artifacts() if a.key == "unlearning-result"]
    assert "| original |" in found[-1].data


@pytest.mark.long
def test_the_flow_runs_as_a_module(tmp_path):
    root = Path(__file__).parents[2]
    help_text = subprocess.run(
        [sys.executable, "-m", "flows.unlearn", "--help"], cwd=root, env=ENVIRONMENT, text=True, capture_output=True
    )
    assert help_text.returncode == 0 and "--workspace" in help_text.stdout
