"""Test the comparison of an audit: the distance of each metric to the retrained models' value, before and now."""

from __future__ import annotations

import pytest

from expunge.evaluation.verdict import Gate
from expunge.ledger.forgotten import ForgottenRows
from expunge.promotion.attack import compare

BOTH = Gate("membership.mia_lr_member", 0.1)
KL = Gate("divergence.forget.kl", 0.1, "not above")
AGREE = Gate("divergence.forget.agreement", 0.1, "not below")
PROBE = Gate("representation.probe_z_prime", 0.1)


def block(mia=0.5, kl=1.0, agreement=0.5, probe=0.6):
    return {
        "membership": {"mia_lr_member": mia},
        "divergence": {"forget": {"kl": kl, "agreement": agreement}},
        "representation": {"probe_z_prime": probe},
    }


def compare_one(gate, then, now, retrained, folded=False):
    found, left_out = compare(then, retrained, now, [gate], folded)
    return found[0] if found else left_out[0]["reason"]


@pytest.mark.parametrize(
    ("then", "now", "target", "worse_by"),
    [(0.5, 0.7, 0.4, 0.2), (0.5, 0.3, 0.4, 0.0), (0.5, 0.1, 0.4, 0.2), (0.9, 0.4, 0.4, -0.5), (0.4, 0.45, 0.4, 0.05)],
)
def test_worse_is_farther_from_the_retrained_models_on_either_side(then, now, target, worse_by):
    row = compare_one(BOTH, block(mia=then), [block(mia=now)], block(mia=target))
    assert row.worse_by == pytest.approx(worse_by) and row.worsened == (worse_by > 0.1)


def test_fresh_seeds_are_averaged_and_their_spread_is_kept():
    row = compare_one(BOTH, block(mia=0.4), [block(mia=m) for m in (0.4, 0.6, 0.8)], block(mia=0.4))
    assert (row.now, row.spread, row.worse_by) == (pytest.approx(0.6), pytest.approx(0.4), pytest.approx(0.2))
    assert "was 0.400 and is 0.600" in str(row) and "allowed 0.100" in str(row)


def test_divergence_counts_on_one_side_and_its_ideal_is_no_divergence():
    """For divergences, the retrained block holds the spread between retrained models or nothing, so it is no target."""
    assert compare_one(KL, block(kl=1.0), [block(kl=0.2)], block(kl=None)).worse_by == pytest.approx(-0.8)
    assert compare_one(KL, block(kl=1.0), [block(kl=1.2)], block(kl=0.3)).worsened
    assert compare_one(AGREE, block(agreement=0.9), [block(agreement=0.7)], block(agreement=None)).worsened
    assert not compare_one(AGREE, block(agreement=0.7), [block(agreement=0.9)], block(agreement=None)).worsened


def test_what_cannot_be_compared_is_named_with_its_reason():
    assert "z' is not shipped" in compare_one(PROBE, block(), [block()], block(), folded=True)
    assert "the report has no value" in compare_one(BOTH, block(mia=None), [block()], block())
    assert "nothing here" in compare_one(KL, block(), [block(kl=None)], block())


def test_rows_of_a_request_are_found_again(tmp_path):
    request = "sha256:" + "a" * 64
    ForgottenRows(tmp_path, request, ["r1", "r3"]).keep(request)
    forgotten = ForgottenRows(tmp_path)
    assert forgotten.mask(request, ["r0", "r1", "r2", "r3"]).tolist() == [False, True, False, True]
    assert not forgotten.mask("sha256:" + "b" * 64, ["r1"]).any()
