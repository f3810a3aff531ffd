"""Claims follow from gates. Each rule is tested by a case that no other rule decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from expunge.evaluation.claims import claims_of, exact_claim, gates_against, may_serve, sentence, useful, utility_of
from tests.verdicts import gate, verdict_with

PASSED = [gate("a", passed=True), gate("b", passed=True, share=0.0, interval=[-0.1, 0.1])]
FAILED = [gate("a", passed=False, refuted=True, share=1.0)]
CONTROLS = {"original": FAILED, "logit mask": FAILED}


def outputs(blocks: Any = PASSED, controls: Any = CONTROLS, **fields: Any) -> tuple[str, str]:
    claims, why = claims_of(blocks, controls, **{"references": 3, **fields})
    return claims["outputs"], why["outputs"]


def test_a_claim_is_shown_where_gates_with_power_pass_and_controls_fail() -> None:
    assert outputs()[0] == "shown"


@pytest.mark.parametrize(
    ("change", "state", "word"),
    [
        ({"references": 2}, "cannot tell", "3 are needed"),
        ({"clean_references": False}, "cannot tell", "saw the forgotten rows"),
        ({"control": "logit mask"}, "cannot tell", "what a control does"),
        ({"controls": {}}, "cannot tell", "no control"),
        ({"controls": {"original": FAILED, "lookup list": PASSED}}, "cannot tell", "lookup list"),
        # Only a gate without power refutes this control, and a candidate does not have to pass such a gate.
        ({"controls": {"mask": [gate("a", power=False, refuted=True)]}}, "cannot tell", "mask"),
        ({"blocks": []}, "cannot tell", "nothing was measured"),
        ({"blocks": [gate("a", power=False)]}, "cannot tell", "no measure"),
        ({"blocks": [*PASSED, gate("c")]}, "cannot tell", "beyond the margin"),
        ({"blocks": [*PASSED, gate("c", refuted=True, share=0.8)]}, "refuted", "80% of the original's excess is left"),
        ({"blocks": [gate("c", power=False, refuted=True, share=-0.6)]}, "refuted", "60% .* overshot"),
    ],
)
def test_each_rule_alone_prevents_a_claim(change: dict[str, Any], state: str, word: str) -> None:
    import re

    found, why = outputs(**change)
    assert found == state and re.search(word, why)


def test_a_backbone_measured_at_its_last_stage_only_is_never_shown() -> None:
    blocks = [gate("z", "backbone", passed=True)]
    controls = {"original": [gate("z", "backbone", refuted=True)]}
    assert claims_of(blocks, controls, references=3)[0]["backbone"] == "cannot tell"
    assert claims_of(blocks, controls, references=3, every_stage=True)[0]["backbone"] == "shown"


def test_exact_needs_no_reference_and_comes_from_the_record() -> None:
    claims, _ = claims_of([], {}, references=0, exact={"holds": True, "why": "public backbone"})
    assert claims == {"outputs": "cannot tell", "features": "cannot tell", "backbone": "cannot tell", "exact": "shown"}
    assert exact_claim({"holds": False, "why": "no"}) == ("refuted", "no")
    assert exact_claim(None)[0] == exact_claim({"holds": None})[0] == "cannot tell"
    assert exact_claim({"holds": "yes"})[0] != "shown"  # The record must say true, not "yes".


def successes(share: float, n: int = 1000) -> np.ndarray:
    return (np.arange(n) < round(share * n)).astype(float)


@pytest.mark.parametrize(("mine", "state"), [(0.90, "kept"), (0.99, "kept"), (0.896, "kept"), (0.80, "lost")])
def test_utility_is_one_sided(mine: float, state: str) -> None:
    others = [{"retain": successes(v)} for v in (0.899, 0.900, 0.901)]
    assert utility_of({"retain": successes(mine)}, others)["outcome"] == state


def test_utility_within_the_spread_of_seeds_cannot_be_told() -> None:
    others = [{"retain": successes(v)} for v in (0.88, 0.90, 0.92)]
    assert utility_of({"retain": successes(0.88)}, others)["outcome"] == "cannot tell"
    assert utility_of({}, others)["outcome"] == "cannot tell"


@pytest.mark.parametrize(
    ("shown", "least", "may"),
    [
        ((), "outputs", False),
        (("outputs",), "outputs", True),
        (("outputs",), "features", False),
        (("features",), "outputs", False),
        (("outputs", "features"), "features", True),
        (("outputs", "features", "backbone"), "exact", False),
        (("exact",), "backbone", True),
        (("exact",), "exact", True),
    ],
)
def test_only_a_model_with_the_required_claims_may_serve(shown: tuple[str, ...], least: str, may: bool) -> None:
    assert may_serve(shown, least) is may


def test_an_unknown_claim_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown claim 'b'"):
        may_serve((), "b")


def test_the_sentence_names_every_claim_and_the_first_reason() -> None:
    verdict = verdict_with(("outputs",), refuted=("backbone",))
    text = sentence("kept", verdict["claims"], verdict["reasons"])
    assert (
        text == "Utility kept; shown: outputs; refuted: backbone; cannot tell: features, exact (backbone: that is so)."
    )


def test_gates_that_refute_or_failed_with_power_stand_against_a_claim() -> None:
    gates = [*PASSED, gate("open"), gate("weak", power=False, passed=None), gate("gone", refuted=True)]
    assert gates_against({"gates": gates}) == ["open", "gone"]


@pytest.mark.parametrize(
    ("shown", "utility", "may"),
    [
        (("outputs",), "kept", True),
        (("outputs", "features", "backbone"), "cannot tell", False),
        (("exact",), "cannot tell", True),
        (("exact",), "lost", False),
        ((), "kept", True),
    ],
)
def test_utility_stands_against_a_model_unless_it_is_exact_and_nothing_says_that_it_lost(
    shown: tuple[str, ...], utility: str, may: bool
) -> None:
    assert useful(shown, utility) is may
