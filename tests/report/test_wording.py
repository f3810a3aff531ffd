"""Test the sentences in which reports describe requests, claims and gates."""

from __future__ import annotations

import copy

from expunge.report import wording
from tests.verdicts import gate, verdict_with


def test_the_request_is_described_without_ids(run):
    names = ["a", "b", "c", "d", "e"]
    whole, some = run()[0], run(whole=False)[0]
    assert wording.request_words(whole, names).startswith("class c: ")
    assert wording.request_words(some, names).endswith("training rows, chosen by random")


def test_copies_that_stay_behind_are_mentioned(run):
    summary = copy.deepcopy(run()[0])
    assert not any("among the retained" in line for line in wording.not_claimed(summary))
    summary["request"] |= {"duplicates_left_in_retain": 2, "near_duplicates": {"left_in_retain": 1200}}
    report = [line for line in wording.not_claimed(summary) if "among the retained" in line]
    assert len(report) == 2 and "2 of the forgotten rows have an exact copy" in report[0]
    assert "1,200 of the forgotten rows have a near-duplicate" in report[1]


def test_the_control_and_a_class_that_lost_accuracy_stand_beside_the_verdict(run):
    summary = copy.deepcopy(run()[0])
    classes, method = list("abcde"), summary["selected"]
    block, control = summary["methods"][method], summary["references"]["logit_mask"]
    block["verdict"], control["verdict"] = verdict_with(("outputs",)), verdict_with(())
    block["per_class"] = {**block["per_class"], "damage": [0.0, 0.17, None, 0.01, 0.0], "worst_class": 1}
    assert wording.attention(summary, classes) == ["Class b lost 17.0 points of accuracy on retained test rows."]
    control["verdict"], block["per_class"]["damage"][1] = verdict_with(("outputs",)), 0.019
    (told,) = wording.attention(summary, classes)
    assert "control logit-mask" in told and "is shown the same: outputs" in told


def test_a_next_step_is_recommended(run):
    summary = copy.deepcopy(run()[0])
    assert "expunge promote" in wording.recommendation(summary)
    summary["selected"] = None
    assert "Retraining without the rows always answers" in wording.recommendation(summary)
    summary["references"]["retrained"] = None
    assert "reference: retrain" in wording.recommendation(summary)
    summary["references"]["original"]["canaries"] = {"planted": 20}
    assert "nothing of it is registered" in wording.recommendation(summary)


def test_a_gate_says_its_outcome_and_what_is_missing():
    assert wording.share_words(gate("x")) == "30% [20%, 40%]"
    assert wording.gate_outcome(gate("x")).startswith("open")
    assert wording.gate_outcome(gate("x", passed=True)) == "passed"
    assert wording.gate_outcome(gate("x", refuted=True)) == "refuted"
    weak = gate("x", power=False, share=None, reason="too few", rows_needed=1200)
    assert wording.gate_outcome(weak) == "cannot tell: too few; about 1,200 such rows are needed"
    assert wording.share_words(weak) == wording.margin_words(weak) == "–"
    shares = {0.25: "inside", 0.26: "outside", -0.25: "inside", -0.26: "outside"}
    assert {share: wording.margin_words({"share": share}) for share in shares} == shares


def test_the_number_of_rows_that_a_verdict_needs_is_stated():
    weak = [gate(p, power=False, rows_needed=n) for p, n in (("x", 900), ("y", 400), ("z", None))]
    assert "About 400 forgotten rows" in wording.rows_it_takes({"gates": weak})
    assert "no number" in wording.rows_it_takes({"gates": weak[2:]})
    assert wording.rows_it_takes({"gates": [*weak, gate("w")]}) == "" == wording.rows_it_takes({"gates": []})


def test_the_focus_is_the_selected_method_else_the_nearest(run):
    summary = copy.deepcopy(run()[0])
    assert wording.focus(summary) == summary["selected"]
    summary["selected"] = None
    distances = {n: b["divergence"]["forget"]["kl"] for n, b in summary["methods"].items() if n != "logit-mask"}
    assert wording.focus(summary) == min(distances, key=distances.get)
    summary["methods"] = {"logit-mask": summary["methods"]["logit-mask"]}
    assert wording.focus(summary) == "logit-mask"


def test_each_claim_has_a_sentence():
    assert wording.claim(verdict_with(())) == "No erasure claim was shown."
    report = wording.claim(verdict_with(("outputs", "exact")))
    assert report.startswith(wording.CLAIMS["outputs"]) and report.endswith(wording.CLAIMS["exact"])


def test_what_is_not_claimed_names_every_claim_that_was_not_shown(run):
    summary = copy.deepcopy(run()[0])
    name = summary["selected"]
    summary["methods"][name]["verdict"] = verdict_with(("outputs", "features"), refuted=("backbone",))
    lines = wording.not_claimed(summary)
    assert lines[:2] == ["backbone: refuted, since that is so.", "exact: cannot tell, since that is so."]


def test_settings_say_whether_they_were_set_or_chosen(run):
    control, loft, keep = wording.settings_lines(run()[0])
    assert control == {"method": "logit-mask", "settings": "defaults of the library", "how": "set in params.yaml"}
    assert loft["settings"] == "solver exact, rank 8"
    assert loft["how"] == "chosen on held-out training rows: rank 8: 0.00% left, 0.40% lost; rank 1 (refused)"
    assert "because the request names rows" in keep["how"]
