"""What is put before the approver, on a finished run of the pipeline."""

from __future__ import annotations

import pytest

from expunge.erasure.candidate import Candidate, Refusal, choose
from expunge.system.errors import PromotionError
from expunge.system.files import read_json, write_json
from expunge.system.paths import REGISTRATION, SUMMARY
from tests.pipeline import change


@pytest.fixture
def run(copy, monkeypatch):
    """In the workspace of the run; MLflow keeps stores by their address, so a relative one would be another test's."""
    monkeypatch.chdir(copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy / 'mlflow.db'}")
    return copy


def nothing_qualified() -> None:
    summary = read_json(SUMMARY)
    for block in summary["methods"].values():
        block["verdict"]["level"] = "none"
    write_json(SUMMARY, {**summary, "selected": None})


def test_a_method_within_its_gates_is_the_product(run):
    receipt = read_json(REGISTRATION)
    level = receipt["tags"]["claim_level"]
    assert choose() == Candidate(receipt["model"], "1", receipt["method"], level)


def test_else_the_retrained_model_is_and_passes_every_gate(run):
    from expunge.promotion.session import ReviewSession

    nothing_qualified()
    product = choose()
    assert (product.method, product.level, product.version) == ("retrained", "d", "2")
    assert choose() == product  # not a third version
    promoter = ReviewSession(product.model).promoter
    version = promoter.version("2")
    assert promoter.check(version) == [] and "Retrained without the rows" in version.tags["verdict"]
    promoter.promote(version, "nothing else qualified", promoter.history().head, {})
    assert promoter.champion().version == "2" and promoter.audit() == []
    promoter.client.set_model_version_tag(product.model, "2", "claim_level", "a")
    with pytest.raises(PromotionError, match="the champion already"):
        promoter.promote(version, "again", promoter.history().head, {})
    assert "changed by hand" in " ".join(promoter.check(promoter.version("2")))


def test_a_level_below_the_one_that_is_asked_for_does_not_qualify(run):
    change(run, lambda p: p["register"].update(promote_level="d"))
    assert choose().method == "retrained"


def test_without_either_the_requests_are_refused(run):
    nothing_qualified()
    change(run, lambda p: p.update(reference="skip"))
    refusal = choose()
    assert isinstance(refusal, Refusal) and "claim level 'a'" in refusal.reason and "loft" in refusal.reason
