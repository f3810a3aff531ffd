"""Test the model card: front matter in the form of the Hugging Face Hub, and a text with claims and their limits."""

from __future__ import annotations

import copy

import pytest
import yaml

from expunge.report.card import TrainingData, model_card
from expunge.report.tables import verdict_line
from tests.report.conftest import HOSTILE

DATA = TrainingData("gauss", "sha256:" + "c" * 64, 525, 175)


def split(card: str) -> tuple[dict, str]:
    empty, front, body = card.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), body


@pytest.mark.slow
def test_the_model_index_holds_the_numbers_of_the_summary(run):
    summary, _ = run()
    front, _ = split(model_card(summary, DATA, HOSTILE))
    assert front["pipeline_tag"] == "image-classification"
    (entry,) = front["model-index"]
    block = summary["methods"][summary["selected"]]
    assert entry["name"] == f"gauss-{summary['selected']}"
    values = {m["name"]: m["value"] for r in entry["results"] for m in r["metrics"]}
    assert values["accuracy on retained test rows"] == pytest.approx(block["accuracy"]["test_retain"], abs=1e-6)
    assert values["KL from the retrained model on forgotten rows, nats"] == pytest.approx(
        block["divergence"]["forget"]["kl"], abs=1e-6
    )
    for result in entry["results"]:
        assert {"type", "name"} <= result["task"].keys() and {"type", "name", "split"} <= result["dataset"].keys()
        assert all({"type", "name", "value"} == metric.keys() for metric in result["metrics"])


def test_the_body_names_claim_data_and_limits(run):
    summary, _ = run(seeds=1)
    _, body = split(model_card(summary, DATA, HOSTILE))
    assert f"**{verdict_line(summary['methods'][summary['selected']]['verdict'])}.**" in body
    assert "3 are needed" in body
    for heading in (
        "Intended use",
        "What was forgotten",
        "Verdict",
        "Gates",
        "What is not claimed",
        "Metrics",
        "Training data",
    ):
        assert f"## {heading}\n" in body
    assert DATA.digest in body and summary["request"]["digest"] in body


def test_class_names_cannot_become_markdown(run):
    _, body = split(model_card(run()[0], DATA, HOSTILE))
    assert "<script>" not in body.replace("\\<script\\>", "")
    assert "\n# c" not in body
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert len(headings) == 8


def test_without_a_selected_method_there_is_no_result_to_index(run):
    summary = copy.deepcopy(run()[0])
    summary["selected"] = None
    front, body = split(model_card(summary, DATA, HOSTILE))
    assert "model-index" not in front
    assert "no model to ship" in body


def test_without_a_reference_nothing_is_compared(run):
    _, body = split(model_card(run(seeds=0)[0], DATA, HOSTILE))
    assert "nothing was retrained" in body
    assert "retrained |" not in body
