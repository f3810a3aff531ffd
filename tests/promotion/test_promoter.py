"""Test the gates of a promotion, rollback, and the audit of the alias, on a registry with five real versions."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from expunge.ledger.forgotten import ForgottenRows, label_pair
from expunge.ledger.ledger import GENESIS
from expunge.system.errors import LedgerError, ManifestError, PromotionError, TrackingError
from expunge.tracking import CHALLENGER, CHAMPION
from tests.promotion.conftest import NAME, REQUESTS, put


def promote(promoter, number: str, reason: str = "looked at it"):
    return promoter.promote(promoter.version(number), reason, promoter.history().head, {"test_retain": {"changed": 3}})


def by_hand(promoter, number: str) -> None:
    """Move only the alias, as MLflow's user interface does."""
    promoter.client.set_registered_model_alias(NAME, CHAMPION, number)


def test_promotion_moves_the_alias_and_writes_why(promoter):
    assert promoter.champion() is None and promoter.audit() == []
    entry = promote(promoter, "1", "  first one  ")
    assert promoter.champion().version == "1" and promoter.audit() == []
    assert mlflow.pyfunc.load_model(f"models:/{NAME}@{CHAMPION}").metadata is not None
    facts = promoter.ledger.entries()[-1].facts
    assert facts["reason"] == "first one" and facts["instead_of"] is None and facts["by_hand"] is False
    assert facts["request"] == REQUESTS["A"] and facts["seen"] == {"test_retain": {"changed": 3}}
    assert promoter.version("1").tags["ledger"] == entry.hash
    assert promote(promoter, "2").facts["instead_of"] == "1"


@pytest.mark.parametrize(
    ("number", "asked", "claimed"),
    [("5", "outputs", "none"), ("1", "features", "outputs"), ("3", "backbone", "outputs, features")],
)
def test_less_than_the_claim_asked_for_is_refused(number, asked, claimed, promoter):
    with pytest.raises(PromotionError, match=f"shown of it: {claimed};.*asks for '{asked}'.*forget.kl"):
        promote(replace(promoter, least=asked), number)
    assert promoter.champion() is None and promoter.ledger.entries() == []


def test_more_than_the_claim_asked_for_is_fine(promoter):
    assert promote(replace(promoter, least="features"), "4").facts["claims"] == "outputs, features, backbone"


def test_a_claim_that_was_added_by_hand_is_noticed(promoter):
    promoter.client.set_model_version_tag(NAME, "5", "claims", "outputs")
    with pytest.raises(PromotionError, match="changed by hand"):
        promote(promoter, "5")


@pytest.mark.parametrize("utility", ["lost", "cannot tell"])
def test_a_version_whose_utility_was_not_kept_is_refused(utility, promoter):
    promoter.client.set_model_version_tag(NAME, "1", "utility", utility)
    with pytest.raises(PromotionError, match=f"its utility is '{utility}'"):
        promote(promoter, "1")


def test_what_is_exact_may_serve_whatever_is_asked_for(promoter):
    promoter.client.set_model_version_tag(NAME, "1", "claims", "exact")
    found = promoter.check(promoter.version("1"))
    # The evaluation claims `outputs`, so the tag contradicts it. There must be no other objection.
    assert len(found) == 1 and "changed by hand" in found[0]


def test_a_version_that_was_never_checked_is_refused(promoter):
    promoter.client.delete_model_version_tag(NAME, "1", "parity")
    with pytest.raises(PromotionError, match="never compared"):
        promote(promoter, "1")


def test_a_version_whose_run_is_gone_is_refused(promoter):
    run = promoter.client.get_run(promoter.version("1").run_id)
    promoter.client.set_tag(run.info.run_id, "mlflow.parentRunId", "0" * 32)
    with pytest.raises(PromotionError, match="evaluation is gone"):
        promote(promoter, "1")


@pytest.mark.slow
def test_other_classes_or_shapes_are_refused(promoter, tmp_path):
    promote(promoter, "1")
    other = put(tmp_path, "A", "colour")
    with pytest.raises(PromotionError, match=r"takes images \(12, 10, 3\)"):
        promote(promoter, other.version)


def test_changed_files_are_refused(promoter, tmp_path):
    version = put(tmp_path, "B", "mlp")
    servable = Path(mlflow.artifacts.download_artifacts(version.uri)) / "artifacts/servable"
    content = (servable / "model.safetensors").read_bytes()
    (servable / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ManifestError, match=r"model\.safetensors"):
        promote(promoter, version.version)
    # Another model with a valid manifest of its own is put in the same place.
    (servable / "model.safetensors").write_bytes(content)
    other = Path(mlflow.artifacts.download_artifacts(promoter.version("1").uri)) / "artifacts/servable"
    shutil.rmtree(servable)
    shutil.copytree(other, servable)
    with pytest.raises(PromotionError, match="not what was registered"):
        promote(promoter, version.version)


def test_a_version_that_had_not_forgotten_earlier_rows_is_refused(promoter):
    promote(promoter, "1")  # Version 1 forgets A.
    with pytest.raises(PromotionError, match="remembers rows that version 1 had forgotten"):
        promote(promoter, "4")  # Version 4 forgets C.
    promote(promoter, "3")  # Version 3 forgets B, which contains A.
    with pytest.raises(PromotionError, match="remembers rows that version 3"):
        promote(promoter, "2")  # Version 2 forgets only A.


def test_forgetting_that_cannot_be_shown_is_refused(promoter, tmp_path):
    promote(promoter, "1")
    blind = replace(promoter, forgotten=ForgottenRows(tmp_path / "elsewhere", REQUESTS["B"], ["r1", "r2", "r3"]))
    with pytest.raises(PromotionError, match="cannot be shown"):
        promote(blind, "3")


def test_the_rows_of_a_promoted_request_are_kept(promoter, tmp_path):
    at_hand = replace(promoter, forgotten=ForgottenRows(tmp_path / "new", REQUESTS["A"], ["r1", "r2"]))
    with pytest.raises(PromotionError, match=r"which rows it forgot .* is not known here"):
        promote(at_hand, "3")
    # The check reports it too, so a person reads it before they are asked for a decision.
    assert any("not known here" in line for line in at_hand.check(at_hand.version("3")))
    promote(at_hand, "1")
    assert ForgottenRows(tmp_path / "new").knows(REQUESTS["A"])


def test_rows_that_were_written_down_at_registration_serve_a_later_promotion(promoter, tmp_path):
    """Version 3 was registered by a run for request B; the workspace now works on request C."""
    folder = tmp_path / "new"
    ForgottenRows(folder, REQUESTS["B"], ["r1", "r2", "r3"]).register()
    later = replace(promoter, forgotten=ForgottenRows(folder, REQUESTS["C"], ["r2", "r9"]))
    # A registered version is not promoted yet, so none of its rows must be forgotten again.
    assert not ForgottenRows(folder).among(["r1"]).any()
    promote(later, "3")
    assert ForgottenRows(folder).among(["r1", "r9"]).tolist() == [True, False]
    with pytest.raises(PromotionError, match="remembers rows that version 3"):
        promote(later, "4")


def test_the_original_is_refused(promoter):
    promoter.client.delete_model_version_tag(NAME, "1", "request")
    with pytest.raises(PromotionError, match="nothing says what it forgot"):
        promote(promoter, "1")


def test_a_reason_a_version_and_a_change_are_needed(promoter):
    for empty in ("", " \n"):
        with pytest.raises(PromotionError, match="a reason is needed"):
            promote(promoter, "1", empty)
    with pytest.raises(TrackingError, match="version 99"):
        promote(promoter, "99")
    assert promoter.version(CHALLENGER).version == "5"
    with pytest.raises(PromotionError, match="no champion"):
        promoter.version(CHAMPION)
    promote(promoter, "1")
    with pytest.raises(PromotionError, match="the champion already"):
        promote(promoter, "1")


def test_a_decision_made_meanwhile_stops_this_one(promoter):
    version = promoter.version("2")
    promote(promoter, "1")
    with pytest.raises(LedgerError, match="meanwhile"):
        promoter.promote(version, "did not see the other", GENESIS, {})
    assert promoter.champion().version == "1"


def test_an_alias_that_does_not_move_is_withdrawn_from_the_ledger(promoter, tmp_path):
    promote(promoter, "1")
    version, head = promoter.version("2"), promoter.history().head
    with sqlite3.connect(tmp_path / "mlflow.db") as db:
        db.execute("CREATE TRIGGER stop BEFORE UPDATE ON registered_model_aliases BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(TrackingError):
        promoter.promote(version, "try", head, {})
    assert promoter.champion().version == "1" and promoter.history().champion["version"] == "1"
    assert [e.kind for e in promoter.ledger.entries()] == ["promotion", "promotion", "withdrawn"]
    assert promoter.audit() == []


def test_rollback_restores_the_champion_before(promoter):
    promote(promoter, "1")
    with pytest.raises(PromotionError, match="only champion there was"):
        promoter.rollback("why")
    promote(promoter, "2")
    entry = promoter.rollback("version 2 is slow")
    assert promoter.champion().version == "1" and entry.facts["instead_of"] == "2" and promoter.audit() == []
    promote(promoter, "2")
    assert promoter.champion().version == "2"


def test_rollback_to_a_version_that_had_not_forgotten_is_refused(promoter):
    with pytest.raises(PromotionError, match="records no promotion"):
        promoter.rollback("why")
    promote(promoter, "1")  # Version 1 forgets A.
    promote(promoter, "3")  # Version 3 forgets B, which contains A and one more row.
    with pytest.raises(PromotionError, match=r"no rollback to version 1:\n- it remembers rows that version 3"):
        promoter.rollback("version 3 is worse")
    assert promoter.champion().version == "3" and promoter.audit() == []


def test_rollback_to_a_deleted_version_is_refused(promoter):
    promote(promoter, "1")
    promote(promoter, "2")
    promoter.client.delete_model_version(NAME, "1")
    with pytest.raises(TrackingError, match="version 1"):
        promoter.rollback("why")
    assert promoter.champion().version == "2"


def test_a_move_by_hand_is_noticed_and_can_be_undone(promoter):
    promote(promoter, "1")
    by_hand(promoter, "5")
    found = promoter.audit()
    assert "version 5 was made champion by hand: version 1 was promoted last" in found[0]
    assert "does not pass" in found[0] and "promote_level asks for" in found[1]
    with pytest.raises(PromotionError, match="promote_level asks for"):
        promote(promoter, "5")
    assert promoter.rollback("nobody looked at it").facts["by_hand"] is True
    assert promoter.champion().version == "1" and promoter.audit() == []


def test_a_good_move_by_hand_can_be_put_on_record(promoter):
    by_hand(promoter, "1")
    assert "none was ever promoted" in promoter.audit()[0] and "passes the gates" in promoter.audit()[0]
    assert promote(promoter, "1").facts["by_hand"] is True
    assert promoter.audit() == []


def test_what_was_forgotten_by_hand_counts_for_promotions_and_stops_no_undoing(promoter):
    promote(promoter, "1")
    by_hand(promoter, "3")  # Version 3 forgets B.
    with pytest.raises(PromotionError, match="remembers rows that version 3"):
        promote(promoter, "2")  # Version 2 forgets only A.
    entry = promoter.rollback("it was moved by hand", "ann")
    assert promoter.champion().version == "1" and promoter.audit() == []
    assert entry.facts["instead_of"] == "3" and entry.facts["who"] == "ann"
    assert [e.kind for e in promoter.ledger.entries()] == ["promotion", "moved by hand", "rollback"]
    # After the rollback, the rows of version 3 no longer stop a promotion.
    assert promote(promoter, "2").facts["instead_of"] == "1"


def test_a_move_by_hand_before_any_promotion_is_undone_by_taking_the_alias_away(promoter):
    by_hand(promoter, "5")
    assert "rollback --reason" in promoter.audit()[0]
    assert promoter.rollback("nobody looked").facts["version"] is None
    assert promoter.champion() is None and promoter.audit() == []


def test_moving_the_alias_by_hand_is_no_way_around_the_gate(promoter):
    """Version 3, which forgot B, was made champion by hand. Version 4, which forgot C, is therefore refused.

    It is still refused after it was made champion by hand as well. A version is compared with the champion on
    record, never with itself.
    """
    promote(promoter, "2")
    by_hand(promoter, "3")
    assert promoter.audit()
    before = promoter.check(promoter.version("4"))
    assert any("version 3 had forgotten" in line for line in before)
    by_hand(promoter, "4")
    assert promoter.check(promoter.version("4")) == before
    with pytest.raises(PromotionError, match="remembers rows that version 3"):
        promote(promoter, "4")
    assert promoter.compared_with(promoter.version("4")).version == "2"
    assert "version 4 was made champion by hand: version 2 was promoted last" in promoter.audit()[0]
    moves = [e.facts for e in promoter.ledger.entries() if e.kind == "moved by hand"]
    assert [(m["version"], m["instead_of"]) for m in moves] == [("3", "2"), ("4", "3")]
    promoter.rollback("not like this")
    assert promoter.champion().version == "2"


def test_a_good_move_by_hand_names_what_it_displaced(promoter):
    promote(promoter, "1")
    by_hand(promoter, "3")
    facts = promote(promoter, "3").facts
    assert facts["instead_of"] == "1" and facts["by_hand"] is True and promoter.audit() == []


def test_a_version_that_is_not_ours_can_be_undone(promoter, monkeypatch):
    """The alias points to a version whose files cannot be read."""
    promote(promoter, "1")
    version = promoter.client.create_model_version(NAME, source="file:///nowhere", run_id=None)
    by_hand(promoter, version.version)
    assert "made champion by hand" in promoter.audit()[0]
    promoter.rollback("it is nobody's")
    assert promoter.champion().version == "1" and promoter.audit() == []


def test_a_removed_alias_is_noticed_and_put_back(promoter):
    promote(promoter, "1")
    promoter.client.delete_registered_model_alias(NAME, CHAMPION)
    assert "was removed by hand" in promoter.audit()[0]
    promoter.rollback("it was removed by accident")
    assert promoter.champion().version == "1" and promoter.audit() == []


def test_a_cut_ledger_is_noticed(promoter):
    promote(promoter, "1")
    promote(promoter, "2")
    lines = promoter.ledger.path.read_text().splitlines(True)
    promoter.ledger.path.write_text(lines[0])
    with pytest.raises(LedgerError, match="cut off"):
        promoter.audit()


def test_a_version_that_was_taught_corrected_labels_again_is_refused(promoter, tmp_path):
    """Version 1 corrects the label of a row, version 3 was made before the dataset had it, and version 4 after that."""
    folder, old, new = tmp_path / "labels", label_pair("r1", "nine"), label_pair("r1", "three")
    ForgottenRows(folder, REQUESTS["A"], [old]).register()
    promoter.client.set_model_version_tag(promoter.name, "1", "corrects", "1")
    entry = promote(replace(promoter, forgotten=ForgottenRows(folder)), "1")
    assert entry.facts["corrects"] == "1"
    assert not ForgottenRows(folder).among(["r1"]).any()  # the row itself is not forgotten
    before = ForgottenRows(folder, REQUESTS["B"], ["r2"], ["r1", "r2", old])
    with pytest.raises(PromotionError, match="labels that it had corrected"):
        promote(replace(promoter, forgotten=before), "3")
    promote(replace(promoter, forgotten=ForgottenRows(folder, REQUESTS["C"], ["r2"], ["r1", "r2", new])), "4")
