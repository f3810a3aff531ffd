"""Test the details that a finished pipeline gives to MLflow: metrics with the same keys, curves, settings and costs."""

import json
from statistics import fmean

import pytest
import yaml

from expunge.tracking.details import details_of, shared_stages, usage_of
from expunge.tracking.runs import metrics_of, seed_run


@pytest.fixture
def details(finished, monkeypatch):
    monkeypatch.chdir(finished)
    summary = json.loads((finished / "reports/summary.json").read_text())
    params = yaml.safe_load((finished / "params.yaml").read_text())
    return summary, details_of(summary, params["retrain"]["seeds"])


def test_original_retrained_and_methods_have_the_same_metrics(details):
    summary, found = details
    blocks = {**{name: summary["references"][name] for name in ("original", "retrained")}, **summary["methods"]}
    keys = {name: {*metrics_of(block), *found[name].metrics} for name, block in blocks.items()}
    every = set.union(*keys.values())
    assert len(every) > 40
    for name, mine in keys.items():
        # A single retrained model has no attack with a population. Samples are counted only if some number sufficed.
        assert every - mine <= {"membership/rmia_auc", "relearn/prototype_samples"}, name


def test_methods_that_learn_have_curves_by_epoch(details):
    _, found = details
    for name in ("original", seed_run(1), seed_run(3), "relearn"):
        curve = found[name].curves["training/loss"]
        assert [step for step, _ in curve] == list(range(1, len(curve) + 1)) and len(curve) > 1
        assert curve[-1][1] < curve[0][1]
    assert not found["loft"].curves and not found["original"].curves.keys() & {"training/seconds", "training/bf16"}


def test_a_method_has_the_settings_it_ran_with(details):
    summary, found = details
    taken = summary["methods"]["loft"]["settings"]["chosen"]["taken"]
    assert taken.items() <= found["loft"].params.items() and "choose" not in found["loft"].params


def test_the_references_have_costs_too(details, finished):
    _, found = details
    cost = json.loads((finished / "reports/cost/train.json").read_text())
    assert found["original"].metrics["cost/fit_s"] == cost["train_s"] > 0
    assert found["original"].metrics["cost/peak_rss_mb"] > 50
    each = [json.loads((finished / f"reports/cost/retrain-{seed}.json").read_text())["train_s"] for seed in (1, 2, 3)]
    expected = fmean(fmean(each) / seconds for seconds in each)
    assert found["retrained"].metrics["cost/speedup_vs_retrain"] == pytest.approx(expected)


def test_each_run_has_the_time_of_its_stage(details, finished):
    _, found = details
    for name, stage in (("original", "train"), (seed_run(2), "retrain-2"), ("loft", "fit-loft")):
        cost = json.loads((finished / f"reports/cost/{stage}.json").read_text())
        start, end = found[name].span
        assert [start, end] == cost["span"] and end - start >= cost.get("train_s", 0.0)
    seeds = [found[seed_run(seed)].span for seed in (1, 2, 3)]
    assert found["retrained"].span == (min(s for s, _ in seeds), max(e for _, e in seeds))


def test_without_a_reference_no_details_of_it_are_logged(finished, monkeypatch):
    monkeypatch.chdir(finished)
    summary = json.loads((finished / "reports/summary.json").read_text())
    found = details_of(summary, [])
    assert "retrained" not in found and "cost/retrain_s" not in found["original"].metrics


def test_samples_of_several_stages_are_in_the_order_of_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports/cost").mkdir(parents=True)
    for stage, at in (("extract-original", [5.0, 6.0]), ("shadow", [1.0]), ("train", [0.0])):
        usage = {"memory": {"time": at, "value": [10 * t for t in at]}}
        (tmp_path / f"reports/cost/{stage}.json").write_text(json.dumps({"usage": usage}))
    assert shared_stages() == ["extract-original", "shadow"]
    assert usage_of(shared_stages()) == {"memory": {"time": [1.0, 5.0, 6.0], "value": [10.0, 50.0, 60.0]}}
