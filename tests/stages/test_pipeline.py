"""Test `dvc repro` from an empty workspace to a registered version, and which stages a changed request runs again."""

import json
import re
from pathlib import Path

import mlflow
import pytest

from expunge.evaluation.claims import shown_words
from expunge.report.dvc_files import PLOTS
from tests.pipeline import change, dvc

PARTS = {"retain", "forget", "test_retain", "test_forget"}


def ran(log: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", log))


@pytest.fixture(scope="module")
def summary(finished):
    return json.loads((finished / "reports" / "summary.json").read_text())


def test_the_summary_keeps_its_contract(summary):
    assert summary["schema"] == 2
    assert {"selector", "forget_rows", "retain_rows", "digest"} <= summary["request"].keys()
    assert {"name", "feature_dim", "saw_forget_data", "digest"} <= summary["model"].keys()
    assert summary["references"].keys() >= {"original", "retrained", "logit_mask"}
    for block in [*(v for v in summary["references"].values()), *summary["methods"].values()]:
        assert block["accuracy"].keys() == PARTS
        assert all(0 <= v <= 1 for v in block["accuracy"].values())
    for block in summary["methods"].values():
        assert block["divergence"]["forget"].keys() >= {"kl", "js", "agreement"}
        assert block["cost"].keys() >= {"fit_s", "peak_rss_mb", "speedup_vs_retrain"}
        verdict = block["verdict"]
        assert verdict["utility"] in ("kept", "lost", "cannot tell") and verdict["references"] == 3
        assert verdict["claims"].keys() == {"outputs", "features", "backbone", "exact"}
        assert set(verdict["claims"].values()) <= {"shown", "refuted", "cannot tell"}
        for gate in verdict["gates"]:
            assert gate.keys() >= {"path", "claim", "power", "share", "interval", "passed"}
        assert verdict["why"].startswith("Utility ")
    control = summary["references"]["logit_mask"]["verdict"]
    assert "shown" not in control["claims"].values() and control["control"] == "logit mask"
    assert summary["references"]["original"]["verdict"]["claims"]["outputs"] == "refuted"
    assert summary["references"]["retrained"]["verdict"]["claims"]["exact"] == "shown"
    assert summary["selected"] is None or summary["selected"] in summary["methods"]


def test_the_retrained_model_never_saw_the_class(summary):
    assert summary["references"]["retrained"]["accuracy"]["test_forget"] == 0
    assert summary["references"]["original"]["accuracy"]["test_forget"] > 0.8


def test_a_second_run_does_nothing_and_says_so(copy):
    log = dvc(copy, "repro")
    assert ran(log) == set()
    assert "up to date" in log


@pytest.mark.slow
def test_another_class_trains_and_extracts_nothing_of_the_original(copy):
    change(copy, lambda p: p["split"].update(classes=[3]))
    log = dvc(copy, "repro", "compare")
    again = ran(log)
    assert {"split", "retrain@1", "fit@loft", "evaluate@loft", "compare"} <= again
    assert not again & {"prepare", "train", "extract", "validate-dataset", "validate-features"}
    assert json.loads((copy / "data" / "split" / "request.json").read_text())["classes"] == [3]


@pytest.mark.slow
def test_without_a_reference_nothing_is_shown_but_what_is_exact(copy):
    change(copy, lambda p: p.update(reference="skip"))
    dvc(copy, "repro")
    summary = json.loads((copy / "reports" / "summary.json").read_text())
    assert summary["references"]["retrained"] is None
    for block in summary["methods"].values():
        claims = block["verdict"]["claims"]
        assert {claims[c] for c in ("outputs", "features", "backbone")} == {"cannot tell"}
        assert "3 are needed" in block["verdict"]["reasons"]["outputs"] and block["verdict"]["gates"] == []
    assert summary["selected"] is None or claims["exact"] == "shown"


def test_the_registered_version_answers_as_evaluated(finished, summary):
    receipt = json.loads((finished / "reports" / "registration.json").read_text())
    if summary["selected"] is None:
        assert receipt["method"] is None
        return
    client = mlflow.MlflowClient(f"sqlite:///{finished / 'mlflow.db'}")
    version = client.get_model_version_by_alias(receipt["model"], "challenger")
    assert version.tags["claims"] == shown_words(summary["methods"][summary["selected"]]["verdict"])
    assert float(version.tags["parity"]) <= 1e-5


@pytest.mark.slow
def test_metrics_and_plots_are_shown(copy):
    table = dvc(copy, "metrics", "show")
    names = ["logit-mask", "loft", "original", "relearn", "retrained", "ru-linear", "teacher-map"]
    assert [name for name in names if f"reports/metrics/{name}.json" in table] == names
    assert max(map(len, table.splitlines())) <= 120
    assert "dvc_plots/index.html" in dvc(copy, "plots", "show")
    shown = json.loads(dvc(copy, "plots", "show", "--json"))["data"]
    assert {Path(name).stem for name in shown} == {metric.path for metric in PLOTS}
    for name, (plot,) in shown.items():
        models = [row["model"] for row in plot["content"]["data"]["values"]]
        assert len(models) == len(set(models)) == 7, name  # Each model has one bar.


def test_no_row_id_leaves_the_data(finished):
    """The ids that `prepare` wrote, such as test-00012, must not occur in params, dvc.lock or reports."""
    import pyarrow.parquet as pq

    some = pq.read_table(finished / "data" / "split" / "assignment.parquet")["sample_id"].to_pylist()[::97]
    texts = [
        finished / "dvc.lock",
        finished / "params.yaml",
        *(p for p in (finished / "reports").rglob("*") if p.is_file()),
    ]
    for path in texts:
        content = path.read_bytes()
        assert not [i for i in some if i.encode() in content], path
    assert len(some) > 5


def test_every_row_is_accounted_for(finished):
    import pyarrow.parquet as pq

    for path in (finished / "data" / "evaluation").glob("*/*.parquet"):
        table = pq.read_table(path)
        assert len(table) == 1797
        assert set(table["part"].to_pylist()) == PARTS | {"validation"}


@pytest.mark.slow
def test_an_entry_that_is_fitted_with_several_seeds(copy):
    """The first fit is the product, and each gate has the spread over the fits."""
    entry = {"method": "ru-mlp", "hidden": [16], "steps": 20, "max_distortion": None, "max_drop": 1.0, "fit_seeds": 3}
    change(copy, lambda p: (p["methods"].append("several"), p["fit"].update(several=entry)))
    dvc(copy, "repro", "-q", "evaluate@several")
    block = json.loads((copy / "reports/evaluation/several.json").read_text())
    assert block["settings"]["fit_seeds"] == 3
    assert max(gate["fit_spread"] for gate in block["judged"]["gates"]) > 0
    assert sorted(p.name for p in (copy / "models/unlearned/several/seeds").iterdir()) == ["1", "2"]
