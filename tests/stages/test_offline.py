"""Test `dvc repro` when the tracking server cannot be reached at the last stage.

All results are kept, and the next run logs them to a real tracking server.
"""

import re

import pytest

from tests.pipeline import ENVIRONMENT, change, dvc
from tests.servers import free_port
from tests.tracking.conftest import new_database, server

__all__ = ["new_database", "server"]  # pytest finds these fixtures by their import.


@pytest.mark.slow
def test_a_run_is_kept_and_logged_when_the_server_is_back(copy, server, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setitem(ENVIRONMENT, "MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    change(copy, lambda p: p["register"].update(experiment="sent later"))
    away = dvc(copy, "repro", ok=False)
    assert "no tracking server answers" in away and "All results are kept" in away
    assert "failed to reproduce 'register'" in away

    monkeypatch.setitem(ENVIRONMENT, "MLFLOW_TRACKING_URI", server)
    monkeypatch.setitem(ENVIRONMENT, "EXPUNGE_FLOW_RUN", "of-the-flow")  # The Prefect flow sets this variable.
    back = dvc(copy, "repro")
    assert re.findall(r"Running stage '([^']+)'", back) == ["register"]
    client = MlflowClient(server)
    found = client.search_runs([client.get_experiment_by_name("sent later").experiment_id])
    assert {r.info.status for r in found} == {"FINISHED"} and len(found) > 4
    assert {r.data.tags["flow_run"] for r in found} == {"of-the-flow"}
    assert len(client.search_model_versions("")) == 1
