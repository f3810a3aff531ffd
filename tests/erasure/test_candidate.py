"""Tests of the choice of the candidate that the approver is shown, on a finished run of the pipeline."""

from __future__ import annotations

import pytest

from expunge.erasure.candidate import Candidate, Refusal, choose
from expunge.report.summary import select
from expunge.system.errors import PromotionError
from expunge.system.files import read_json, write_json
from expunge.system.paths import REGISTRATION, SUMMARY
from tests.pipeline import change


@pytest.fixture
def run(copy, monkeypatch):
    """Change into the workspace of the run, and return it.

    MLflow caches stores by address, so a relative one could belong to another test.
    """
    monkeypatch.chdir(copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy / 'mlflow.db'}")
    return copy


def verdicts(change_one) -> None:
    """Replace the verdict of every method by `change_one(name, verdict)`, and select a method again."""
    summary = read_json(SUMMARY)
    for name, block in summary["methods"].items():
        block["verdict"] = change_one(name, block["verdict"])
    write_json(SUMMARY, {**summary, "selected": select(summary["methods"])})


def nothing_qualified() -> None:
    verdicts(lambda name, verdict: {**verdict, "claims": dict.fromkeys(verdict["claims"], "cannot tell")})


def registered(run) -> str:
    """Return the method that the run registered. Skip the test if nothing was shown of any method."""
    method = read_json(REGISTRATION)["method"]
    if method is None:
        pytest.skip("nothing was shown of any method of this run")
    return str(method)


def test_a_method_of_which_enough_was_shown_is_the_candidate(run):
    method, receipt = registered(run), read_json(REGISTRATION)
    assert choose() == Candidate(receipt["model"], "1", method, receipt["tags"]["claims"])


def test_else_the_retrained_model_is_the_candidate_and_passes_every_gate(run):
    from expunge.promotion.session import ReviewSession

    nothing_qualified()
    product = choose()
    assert (product.method, product.claims) == ("retrained", "exact")
    assert choose() == product  # no third version is registered
    promoter = ReviewSession(product.model).promoter
    version = promoter.version(product.version)
    assert promoter.check(version) == [] and "Retrained without the rows" in version.tags["verdict"]
    promoter.promote(version, "nothing else qualified", promoter.history().head, {})
    assert promoter.champion().version == product.version and promoter.audit() == []
    promoter.client.set_model_version_tag(product.model, product.version, "claims", "outputs")
    with pytest.raises(PromotionError, match="the champion already"):
        promoter.promote(version, "again", promoter.history().head, {})
    assert "changed by hand" in " ".join(promoter.check(promoter.version(product.version)))


def test_a_retrained_model_of_which_nothing_was_shown_is_no_candidate(run):
    nothing_qualified()
    summary = read_json(SUMMARY)
    summary["references"]["retrained"]["verdict"]["claims"]["exact"] = "cannot tell"
    write_json(SUMMARY, summary)
    refusal = choose()
    assert isinstance(refusal, Refusal) and "nor of the retrained model" in refusal.reason


def test_a_claim_below_the_required_one_does_not_qualify(run):
    verdicts(lambda name, verdict: {**verdict, "claims": {**verdict["claims"], "exact": "cannot tell"}})
    change(run, lambda p: p["register"].update(promote_level="exact"))
    assert choose().method == "retrained"


def test_without_a_candidate_the_requests_are_refused(run):
    nothing_qualified()
    change(run, lambda p: p.update(reference="skip"))
    refusal = choose()
    assert isinstance(refusal, Refusal) and "'outputs' was shown of no method" in refusal.reason
    assert "loft" in refusal.reason
