from __future__ import annotations

import copy
from typing import Any

import pytest

from expunge.evaluation.margins import Margins
from expunge.evaluation.verdict import lookup, verdict

MARGINS = Margins(accuracy=0.02, retain=0.02, kl=0.1, agreement=0.05, loss_auc=0.03, mia=0.1, probe=0.02)


def block(**changes: float | None) -> dict[str, Any]:
    base: dict[str, Any] = {
        "accuracy": {"retain": 0.96, "forget": 0.0, "test_retain": 0.92, "test_forget": 0.0},
        "divergence": {"forget": {"kl": 0.3, "agreement": 0.8}},
        "membership": {"loss_auc": 0.5, "mia_lr_member": 0.4},
        "representation": {"probe_z": 0.95, "probe_z_prime": 0.95},
    }
    for path, value in changes.items():
        *keys, last = path.split("__")
        target = base
        for key in keys:
            target = target[key]
        target[last] = value
    return base


ORIGINAL = block(accuracy__forget=0.99, accuracy__test_forget=0.98)


def judge(candidate: dict[str, Any], retrained: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return verdict(
        candidate, ORIGINAL, [block(), block()] if retrained is None else retrained, MARGINS, whole_classes=True
    )


def failed(result: dict[str, Any]) -> list[str]:
    return [f["gate"] for f in result["failed_gates"]]


def test_a_model_like_the_retrained_ones_reaches_the_highest_level() -> None:
    assert judge(block()) == {
        "level": "d",
        "failed_gates": [],
        "not_evaluated": [],
        "indicative": False,
        "reference": "2 retrained",
    }


@pytest.mark.parametrize(
    ("path", "value", "level"),
    [
        ("accuracy__test_retain", 0.85, "none"),
        ("accuracy__test_retain", 0.97, "none"),
        ("accuracy__forget", 0.2, "none"),
        ("divergence__forget__kl", 0.5, "a"),
        ("divergence__forget__agreement", 0.7, "a"),
        ("membership__loss_auc", 0.6, "a"),
        ("membership__loss_auc", 0.4, "a"),
        ("membership__mia_lr_member", 0.0, "a"),
        ("representation__probe_z_prime", 0.99, "b"),
        ("representation__probe_z_prime", 0.5, "b"),
        ("representation__probe_z", 0.99, "c"),
    ],
)
def test_each_gate_stops_at_the_level_below_it_on_either_side(path: str, value: float, level: str) -> None:
    result = judge(block(**{path: value}))
    assert result["level"] == level
    assert failed(result) == [path.replace("__", ".")]


def test_excess_is_what_the_interval_leaves_the_margin_by() -> None:
    result = judge(block(membership__loss_auc=0.58))
    gate = result["failed_gates"][0]
    assert gate["excess"] == pytest.approx(0.05)
    assert (gate["value"], gate["target"], gate["margin"]) == (0.58, 0.5, 0.03)


def test_being_nearer_to_the_retrained_models_than_they_are_to_each_other_is_no_failure() -> None:
    assert judge(block(divergence__forget__kl=0.0, divergence__forget__agreement=1.0))["level"] == "d"


def test_levels_are_cumulative() -> None:
    result = judge(block(accuracy__forget=0.5, representation__probe_z=0.5))
    assert result["level"] == "none"
    assert failed(result) == ["accuracy.forget", "representation.probe_z"]


def test_the_interval_counts_and_not_the_estimate_alone() -> None:
    candidate = block(accuracy__retain=0.95)
    assert judge(candidate)["level"] == "d"
    spread = [block(accuracy__retain=0.90), block(accuracy__retain=1.0)]
    assert "accuracy.retain" in failed(judge(candidate, spread))


def test_one_retrained_seed_uses_the_row_intervals_and_says_that_it_is_indicative() -> None:
    one = [block(divergence__forget__kl=None, divergence__forget__agreement=None)]
    candidate = block(divergence__forget__kl=0.05, divergence__forget__agreement=0.98)
    result = judge(candidate, one)
    assert (result["level"], result["indicative"]) == ("d", True)
    wide = copy.deepcopy(candidate) | {"intervals": {"divergence.forget.kl": [0.04, 0.13]}}
    result = judge(wide, one)
    assert failed(result) == ["divergence.forget.kl"]
    assert result["failed_gates"][0]["excess"] == pytest.approx(0.03)


def test_a_gate_without_reference_value_is_left_out() -> None:
    result = judge(block(accuracy__test_forget=None), [block(accuracy__test_forget=None)] * 2)
    assert result["level"] == "d"
    assert [g["gate"] for g in result["not_evaluated"]] == ["accuracy.test_forget"]


def test_a_level_none_of_whose_gates_was_evaluated_is_not_earned() -> None:
    result = judge(block(), [block(representation__probe_z_prime=None)] * 2)
    assert result["level"] == "b"


def test_a_value_that_is_missing_where_the_reference_has_one_fails() -> None:
    result = judge(block(membership__mia_lr_member=None))
    assert result["level"] == "a"
    assert result["failed_gates"][0]["excess"] is None


def test_without_retrained_models_only_level_a_can_be_reached() -> None:
    result = judge(block(), [])
    assert (result["level"], result["indicative"], result["reference"]) == ("a", True, "original only")
    assert {g["level"] for g in result["not_evaluated"]} == {"b", "c", "d"}
    assert judge(block(accuracy__retain=0.90), [])["level"] == "none"
    assert judge(block(accuracy__retain=1.0), [])["level"] == "a"
    assert failed(judge(block(accuracy__forget=0.3), [])) == ["accuracy.forget"]
    assert judge(ORIGINAL, [])["level"] == "none"


def test_without_retrained_models_rows_that_are_no_class_have_no_forgetting_gate() -> None:
    result = verdict(ORIGINAL, ORIGINAL, [], MARGINS, whole_classes=False)
    assert result["level"] == "a"
    assert "accuracy.forget" in [g["gate"] for g in result["not_evaluated"]]


def test_lookup_of_missing_paths() -> None:
    assert lookup({"a": {"b": 1}}, "a.b") == 1.0
    assert lookup({"a": {}}, "a.b") is None
    assert lookup({"a": None}, "a.b.c") is None
