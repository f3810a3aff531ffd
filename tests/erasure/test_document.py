"""Runs the shell commands of docs/erasure.md unchanged, from `request add` to a certificate without residues."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.pipeline import ENVIRONMENT, ROOT, lay_out


@pytest.mark.long
@pytest.mark.slow
def test_the_life_of_a_request_as_documented(tmp_path):
    workspace = lay_out(tmp_path / "workspace")
    shutil.copy(ROOT / "params.demo.yaml", workspace)
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs/erasure.md").read_text(), re.M | re.S)
    assert len(blocks) == 6
    environment = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("EXPUNGE_")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=workspace,
        env={**environment, "PYTHONPATH": str(workspace / "src"), "PREFECT_HOME": str(tmp_path / "prefect")},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "signed by this key and unchanged" in done.stdout and "residues left: 0" in done.stdout
    certificate = json.loads(next((workspace / "records/certificates").glob("*/certificate.json")).read_text())
    body = certificate["certificate"]
    assert body["sweep"]["left"] == [] and body["unlearning"]["approval"]["by"] == "J. Doe"
    assert body["unlearning"]["this_request"]["train"] > 100
    model, request = body["unlearning"]["model"], body["request"]["id"]
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    version = client.get_model_version_by_alias(model["model"], "champion")
    assert (int(version.version), version.tags["certificate"]) == (int(model["version"]), request)
    attached = [entry.path for entry in client.list_artifacts(version.run_id, f"certificates/{request}")]
    assert f"certificates/{request}/certificate.json" in attached
    params = Path(workspace / "params.yaml").read_text()
    assert params == (ROOT / "params.demo.yaml").read_text()
