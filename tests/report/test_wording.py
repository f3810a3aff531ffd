"""Plain words for requests, claims and gates."""

from __future__ import annotations

import copy

import pytest

from expunge.report import wording


def test_the_request_is_told_without_ids(run):
    names = ["a", "b", "c", "d", "e"]
    whole, some = run()[0], run(whole=False)[0]
    assert wording.request_words(whole, names).startswith("class c: ")
    assert wording.request_words(some, names).endswith("training rows, chosen by random")


@pytest.mark.parametrize(
    ("gate", "alone", "expected"),
    [
        ("divergence.forget.kl", False, "at most 0.600"),
        ("divergence.forget.agreement", False, "at least 0.400"),
        ("accuracy.forget", False, "0.500 ± 0.1"),
        ("accuracy.test_forget", True, "at most 0.600"),
        ("accuracy.test_retain", True, "at least 0.400"),
    ],
)
def test_a_gate_says_what_would_have_passed(gate, alone, expected):
    assert wording.wanted({"gate": gate, "target": 0.5, "margin": 0.1}, alone) == expected


def test_the_focus_is_the_selected_method_else_the_nearest(run):
    summary = copy.deepcopy(run()[0])
    assert wording.focus(summary) == summary["selected"]
    summary["selected"] = None
    distances = {n: b["divergence"]["forget"]["kl"] for n, b in summary["methods"].items() if n != "logit-mask"}
    assert wording.focus(summary) == min(distances, key=distances.get)
    summary["methods"] = {"logit-mask": summary["methods"]["logit-mask"]}
    assert wording.focus(summary) == "logit-mask"


def test_a_claim_without_a_reference_does_not_speak_of_one(run):
    assert "retrained" in wording.claim("a", run()[0])
    assert "retrained" not in wording.claim("a", run(seeds=0)[0])
    assert "nothing was retrained" in wording.why_indicative(run(seeds=0)[0])
    assert "one retrained model" in wording.why_indicative(run(seeds=1)[0])


def test_what_is_not_claimed_names_every_level_above(run):
    summary = copy.deepcopy(run()[0])
    name = summary["selected"]
    summary["methods"][name]["verdict"]["level"] = "b"
    assert wording.not_claimed(summary)[0] == "Levels c, d."
    summary["methods"][name]["verdict"]["level"] = "d"
    assert not wording.not_claimed(summary)[0].startswith("Level")


def test_how_settings_came_about(run):
    control, loft, keep = wording.settings_lines(run()[0])
    assert control == {"method": "logit-mask", "settings": "defaults of the library", "how": "set in params.yaml"}
    assert loft["settings"] == "solver exact, rank 8"
    assert loft["how"] == "chosen on held-out training rows: rank 8: 0.00% left, 0.40% lost; rank 1 (refused)"
    assert "because the request names rows" in keep["how"]
