"""Test how a run of the pipeline is logged to MLflow: a parent run, and a child run for every candidate and seed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import ViewType

from expunge.evaluation.claims import claim_tags
from expunge.system.errors import TrackingError
from expunge.tracking import Detail, LoggedDataset, connect, log_pipeline_run, metrics_of
from expunge.tracking.report_link import log_linked_report, run_words
from expunge.tracking.run_times import end_kept
from expunge.tracking.runs import TAG_LENGTH, clip
from expunge.tracking.store import fluent
from tests.verdicts import REACHED, verdict_with


def candidate(level: str | None = None, kl: float = 0.5, failed: tuple[str, ...] = ()) -> dict:
    entry: dict = {
        "accuracy": {"retain": 0.96, "forget": 0.01},
        "divergence": {"forget": {"kl": kl, "js": 0.1}, "test": {"kl": 0.2}},
        "membership": {"loss_auc": 0.51, "note": "text", "missing": None, "flag": True},
        "cost": {"fit_s": 0.25},
        "relearn": {"steps": 4, "curve": [0.0, 0.5, 0.96]},
    }
    return entry if level is None else {**entry, "verdict": verdict_with(REACHED[level], failed=failed)}


SUMMARY = {
    "schema": 2,
    "request": {"selector": "classes", "forget_rows": 60, "retain_rows": 540, "digest": "sha256:" + "f" * 64},
    "model": {"name": "resnet-small", "feature_dim": 128, "saw_forget_data": True, "digest": "sha256:00"},
    "references": {"original": candidate(kl=9.0), "retrained": candidate(kl=0.0), "logit_mask": candidate("none")},
    "methods": {"loft": candidate("none", failed=("kl", "accuracy")), "ru-linear": candidate("outputs")},
    "selected": "ru-linear",
}
DATASET = LoggedDataset("digits", "sha256:" + "0123456789abcdef" * 4, {"rows_train": 600, "rows_test": 100})


def log(summary: dict = SUMMARY, **changes):
    arguments = {
        "experiment": "digits/resnet-small",
        "run_name": "forget class 5",
        "description_md": "# Verdict\n\nlevel a",
        "params": {"fit.ru-linear.beta_d": 1.0, "split.selector": "classes"},
        "tags": {"git_commit": "abc", "git_dirty": "false", "dvc_lock": "sha256:1"},
        "dataset": DATASET,
    }
    return log_pipeline_run(summary, **{**arguments, **changes})


def test_metric_names_are_grouped():
    assert metrics_of(candidate("outputs")) == {
        "accuracy/retain": 0.96,
        "accuracy/forget": 0.01,
        "divergence/forget_kl": 0.5,
        "divergence/forget_js": 0.1,
        "divergence/test_kl": 0.2,
        "membership/loss_auc": 0.51,
        "cost/fit_s": 0.25,
        "relearn/steps": 4.0,
    }
    assert metrics_of({"ulira": {"tpr@0.1%": 0.2}, "n": 3}) == {"ulira/tpr_0.1_": 0.2, "n": 3.0}


def test_a_parent_and_a_child_for_every_candidate(store):
    ids = log(per_method={"loft": Detail(params={"rank": 32}, curves={"fit/loss": [(0, 2.0), (10, 1.0)]})})
    client = connect()
    runs = {r.info.run_id: r for r in client.search_runs([ids.experiment])}
    assert len(runs) == 6 and {r.info.status for r in runs.values()} == {"FINISHED"}
    parent = runs[ids.parent]
    assert parent.info.run_name == "forget class 5"
    shared = {"claims": "outputs", "kind": "pipeline", "method": "ru-linear"}
    assert parent.data.params == {**shared, "fit.ru-linear.beta_d": "1.0", "split.selector": "classes"}
    assert parent.data.metrics == {
        **metrics_of(SUMMARY["methods"]["ru-linear"]),
        "request/forget_rows": 60,
        "request/retain_rows": 540,
    }
    wanted = {
        "mlflow.note.content": "# Verdict\n\nlevel a",
        "git_commit": "abc",
        "dvc_lock": "sha256:1",
        "request": SUMMARY["request"]["digest"],
        "claims": "outputs",
        "utility": "kept",
        "failed_gates": "none",
        "selected": "ru-linear",
        "role": "pipeline",
        "mlflow.source.name": "dvc.yaml",
        "mlflow.source.git.commit": "abc",
    }
    assert wanted.items() <= parent.data.tags.items()
    assert list(reversed(ids.children)) == ["original", "retrained", "logit_mask", "loft", "ru-linear"]
    keys = {frozenset(runs[i].data.metrics) - {"fit/loss", "relearn/curve"} for i in ids.children.values()}
    # MLflow's page for comparing runs needs the same names in all of them.
    assert keys == {frozenset(metrics_of(candidate()))}
    loft = runs[ids.children["loft"]]
    assert loft.data.tags["mlflow.parentRunId"] == ids.parent and loft.info.run_name == "loft"
    assert (loft.data.tags["claims"], loft.data.tags["failed_gates"]) == ("none", "kl, accuracy")
    assert loft.data.params == {"claims": "none", "kind": "method", "method": "loft", "settings.rank": "32"}
    # MLflow's page for comparing runs opens on the first three parameters by name.
    assert sorted(loft.data.params)[:3] == sorted(
        {"claims", "kind", "method"}.intersection(*(r.data.params for r in runs.values()))
    )
    assert [(m.step, m.value) for m in client.get_metric_history(loft.info.run_id, "fit/loss")] == [(0, 2.0), (10, 1.0)]
    original = runs[ids.children["original"]]
    assert original.data.tags["role"] == "reference"
    relearned = client.get_metric_history(original.info.run_id, "relearn/curve")
    assert [(m.step, m.value) for m in relearned] == [(0, 0.0), (1, 0.5), (2, 0.96)]


def test_a_verdict_without_retrained_models_has_no_evaluated_gates():
    verdict = verdict_with(("exact",))
    assert claim_tags(verdict)["failed_gates"] == "none"
    assert claim_tags({**verdict, "references": 0})["failed_gates"] == "not evaluated"


def test_each_retrained_seed_has_a_run(store):
    seeds = {1: candidate(kl=0.2), 2: candidate(kl=0.4)}
    spread = {"seeds": 2, "spread": candidate(kl=0.1)}
    references = {**SUMMARY["references"], "retrained": {**candidate(kl=0.3), **spread}}
    curve = {"training/loss": [(1, 2.0), (2, 0.5)]}
    ids = log(
        {**SUMMARY, "references": references}, seeds=seeds, per_method={"retrained, seed 2": Detail(curves=curve)}
    )
    client = connect()
    runs = {name: client.get_run(i) for name, i in ids.children.items()}
    assert runs["retrained, seed 2"].data.metrics["divergence/forget_kl"] == 0.4
    assert runs["retrained, seed 2"].data.metrics["training/loss"] == 0.5
    assert runs["retrained, seed 1"].data.tags["role"] == "seed"
    assert not [m for m in runs["retrained"].data.metrics if m.startswith(("spread", "seeds"))]
    # A single retrained model is the reference itself, and another run would only repeat it.
    assert not [name for name in log(seeds={1: candidate()}).children if "seed" in name]


def test_samples_of_the_machine_keep_their_time(store):
    samples = {"process_memory_megabytes": {"time": [1000.0, 1000.5], "value": [80.0, 90.0]}}
    ids = log(per_method={"loft": Detail(usage=samples)}, usage=samples)
    for run in (ids.parent, ids.children["loft"]):
        history = connect().get_metric_history(run, "system/process_memory_megabytes")
        assert [(m.timestamp, m.step, m.value) for m in history] == [(1_000_000, 0, 80.0), (1_000_500, 1, 90.0)]


def test_runs_have_the_times_of_their_stages(store):
    spans = {"original": (1000.0, 1060.5), "loft": (1100.0, 1100.25)}
    began = time.time()
    ids = log(per_method={name: Detail(span=span) for name, span in spans.items()})
    client = connect()
    for name, (start, end) in spans.items():
        info = client.get_run(ids.children[name]).info
        assert (info.start_time, info.end_time) == (1000 * start, 1000 * end), name
    parent = client.get_run(ids.parent).info
    assert parent.start_time == 1_000_000 and parent.end_time >= 1000 * began - 1
    with end_kept(client, ids.children["loft"]), fluent(), mlflow.start_run(run_id=ids.children["loft"]):
        pass  # as MLflow does when it stores a model with a run
    info = client.get_run(ids.children["loft"]).info
    assert (info.status, info.end_time) == ("FINISHED", 1_100_250)
    # Stages that were not run again do not count for the next run of the pipeline.
    later = time.time() + 1
    again = log(per_method={"original": Detail(span=spans["original"]), "loft": Detail(span=(later, later + 1))})
    assert client.get_run(again.parent).info.start_time == round(1000 * later)


def test_the_report_of_a_run_names_this_run(store, tmp_path):
    report = tmp_path / "report.html"
    report.write_text("<header>\n<!-- run -->\n</header>")
    ids = log(artifacts=[report])
    log_linked_report(ids, report)
    read = mlflow.artifacts.load_text(f"runs:/{ids.parent}/report.html")
    run = f"experiment {ids.experiment}, run {ids.parent}"
    assert f"In MLflow: {run}.</p>" in read and "<!-- run -->" in report.read_text()
    address = f"http://tracking.example:5000/#/experiments/{ids.experiment}/runs/{ids.parent}"
    assert run_words("http://me:secret@tracking.example:5000/", ids) == f'<a href="{address}">{run}</a>'


def test_a_control_that_is_also_a_method_gets_one_run(store):
    ids = log({**SUMMARY, "methods": {**SUMMARY["methods"], "logit-mask": candidate("none")}})
    assert set(ids.children) == {"original", "retrained", "loft", "ru-linear", "logit-mask"}


def test_dataset_and_request_are_inputs_by_digest_and_count(store):
    ids = log()
    inputs = connect().get_run(ids.parent).inputs.dataset_inputs
    found = {i.tags[0].value: i.dataset for i in inputs}
    assert found["dataset"].digest == ("0123456789abcdef" * 4)[:36]
    assert json.loads(found["dataset"].profile) == {"rows_train": 600, "rows_test": 100}
    assert found["erasure request"].digest == "f" * 36
    assert json.loads(found["erasure request"].profile) == {"forget_rows": 60, "retain_rows": 540}


def test_artifacts_are_logged_with_the_parent_or_the_method(store, tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots/relearn.csv").write_text("step,accuracy\n0,0.1\n")
    (tmp_path / "results.md").write_text("# Results\n")
    ids = log(
        artifacts=[tmp_path / "plots", tmp_path / "results.md"],
        per_method={"loft": Detail(artifacts=[tmp_path / "results.md"])},
    )
    client = connect()
    assert {a.path for a in client.list_artifacts(ids.parent)} == {"plots", "results.md"}
    read = mlflow.artifacts.download_artifacts(run_id=ids.parent, artifact_path="plots/relearn.csv")
    assert Path(read).read_text() == "step,accuracy\n0,0.1\n"
    assert [a.path for a in client.list_artifacts(ids.children["loft"])] == ["results.md"]
    assert (tmp_path / "mlartifacts").is_dir() and not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", "label,sample_id\n1,a\n"),
        ("rows.json", '{"worst": [{"subject": "p7", "loss": 3.0}]}'),
        ("rows.parquet", "anything"),
    ],
)
def test_ids_of_rows_and_people_are_not_logged(name, text, store, tmp_path):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / name).write_text(text)
    with pytest.raises(TrackingError, match="holds ids of rows"):
        log(artifacts=[tmp_path / "reports"])
    assert connect().search_runs(["0", "1"]) == []


def test_a_run_without_a_selected_method_has_the_metrics_of_the_request_alone(store):
    ids = log({**SUMMARY, "selected": None})
    parent = connect().get_run(ids.parent)
    assert parent.data.tags["selected"] == "none" and "claims" not in parent.data.tags
    assert set(parent.data.metrics) == {"request/forget_rows", "request/retain_rows"}


def test_more_metrics_and_params_than_one_call_takes_are_all_logged(store):
    many = {f"m/{i}": float(i) for i in range(1200)}
    params = {f"p{i}": i for i in range(250)}
    ids = log(per_method={"loft": Detail(metrics=many, params=params)})
    run = connect().get_run(ids.children["loft"])
    assert many.items() <= run.data.metrics.items() and len(run.data.params) == 253


def test_a_failure_marks_the_runs_that_were_begun(store, tmp_path):
    with pytest.raises(TrackingError, match=r"relearn/steps.*infinite"):
        log(per_method={"ru-linear": Detail(metrics={"relearn/steps": float("inf")})})
    client = connect()
    experiment = client.get_experiment_by_name("digits/resnet-small")
    statuses = [r.info.status for r in client.search_runs([experiment.experiment_id])]
    assert statuses and set(statuses) == {"FAILED"}


def test_missing_artifacts_and_unknown_methods_are_named(store, tmp_path):
    with pytest.raises(TrackingError, match=r"gone\.md: there is nothing to log"):
        log(artifacts=[tmp_path / "gone.md"])
    with pytest.raises(ValueError, match="salun"):
        log(per_method={"salun": Detail()})


def test_a_deleted_experiment_says_how_to_restore_it(store):
    ids = log()
    connect().delete_experiment(ids.experiment)
    with pytest.raises(TrackingError, match=f"mlflow experiments restore -x {ids.experiment}"):
        log()


def test_a_long_description_is_cut_at_a_line():
    text = "\n".join(f"line {i}" for i in range(2000))
    cut = clip(text, TAG_LENGTH)
    assert len(cut) <= TAG_LENGTH and cut.endswith("*The rest is in the run's artifacts.*")
    assert text.startswith(cut.rpartition("\n\n")[0]) and text[len(cut.rpartition("\n\n")[0])] == "\n"
    assert clip("short", TAG_LENGTH) == "short"


def test_every_pipeline_run_has_runs_of_its_own(store):
    first = log()
    second = log()
    assert first.experiment == second.experiment and first.parent != second.parent
    assert len(connect().search_runs([first.experiment], run_view_type=ViewType.ALL)) == 12


def test_a_skipped_reference_has_no_run(store):
    ids = log({**SUMMARY, "references": {**SUMMARY["references"], "retrained": None}})
    assert set(ids.children) == {"original", "logit_mask", "loft", "ru-linear"}
