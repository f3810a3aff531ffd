"""Tests that a class and then single rows can be erased, with the nightly `dvc repro` after each erasure."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.pipeline import ENVIRONMENT, change, dvc, lay_out

pytestmark = pytest.mark.slow


def expunge(workspace: Path, *arguments: str) -> str:
    environment = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("EXPUNGE_")}
    done = subprocess.run(
        [sys.executable, "-m", "expunge.cli", *arguments],
        cwd=workspace,
        env={**environment, "PYTHONPATH": str(workspace / "src")},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def erase(workspace: Path, *what: str) -> dict:
    """Carry out one request from intake to certificate, and return the certificate's body."""
    before = {path.name for path in (workspace / "records/certificates").glob("*")}
    expunge(workspace, "request", "add", *what, "--basis", "GDPR Art. 17(1)(b)")
    (id_,) = set(re.findall(r"R-\d+-[0-9a-f]+", expunge(workspace, "request", "list")))
    expunge(workspace, "request", "verify", id_, "--reason", "identity checked")
    expunge(workspace, "request", "run")
    expunge(workspace, "request", "approve", "--reason", "as good as retraining", "--by", "J. Doe")
    expunge(workspace, "request", "run")
    (folder,) = [p for p in (workspace / "records/certificates").glob("*") if p.name not in before]
    key = workspace / "records/keys/signing.pub.pem"
    expunge(workspace, "certificate", "verify", str(folder / "certificate.json"), "--key", str(key))
    return json.loads((folder / "certificate.json").read_text())["certificate"]


def labels(workspace: Path) -> np.ndarray:
    parts = sorted((workspace / "data/dataset").glob("part-*.parquet"))
    return np.concatenate([pq.read_table(part, columns=["label"])["label"].to_numpy() for part in parts])


@pytest.mark.long
def test_a_class_and_then_single_rows_with_nightly_runs_between(tmp_path):
    workspace = lay_out(tmp_path / "workspace")
    change(workspace, lambda params: params.update(methods=["logit-mask", "teacher-map"]))
    dvc(workspace, "repro", "validate-dataset")
    before = labels(workspace)

    first = erase(workspace, "--classes", "5")
    assert first["sweep"]["left"] == [] and not (labels(workspace) == 5).any()
    dvc(workspace, "repro")  # the nightly run must not fail because the request in params.yaml is already met

    ids = pq.read_table(sorted((workspace / "data/dataset").glob("part-*.parquet"))[0], columns=["sample_id"])
    some = tmp_path / "rows.txt"
    some.write_text("\n".join(ids["sample_id"].to_pylist()[:6]) + "\n")
    second = erase(workspace, "--ids", str(some))
    assert second["sweep"]["left"] == []
    left = labels(workspace)
    assert len(left) == (before != 5).sum() - 6
    dvc(workspace, "repro")
    expunge(workspace, "ledger", "verify")
