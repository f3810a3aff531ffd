from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from expunge.erasure.forgotten import ForgottenRows
from expunge.erasure.ledger import GENESIS
from expunge.errors import LedgerError, ManifestError, PromotionError, TrackingError
from expunge.tracking import CHALLENGER, CHAMPION
from tests.promotion.conftest import NAME, REQUESTS, put


def promote(desk, number: str, reason: str = "looked at it"):
    return desk.promote(desk.version(number), reason, desk.history().head, {"test_retain": {"changed": 3}})


def by_hand(desk, number: str) -> None:
    """As in the UI: the alias moves, and nothing else happens."""
    desk.client.set_registered_model_alias(NAME, CHAMPION, number)


def test_promotion_moves_the_alias_and_writes_why(desk):
    assert desk.champion() is None and desk.audit() == []
    entry = promote(desk, "1", "  first one  ")
    assert desk.champion().version == "1" and desk.audit() == []
    assert mlflow.pyfunc.load_model(f"models:/{NAME}@{CHAMPION}").metadata is not None
    facts = desk.ledger.entries()[-1].facts
    assert facts["reason"] == "first one" and facts["instead_of"] is None and facts["by_hand"] is False
    assert facts["request"] == REQUESTS["A"] and facts["seen"] == {"test_retain": {"changed": 3}}
    assert desk.version("1").tags["ledger"] == entry.hash
    assert promote(desk, "2").facts["instead_of"] == "1"


@pytest.mark.parametrize(("number", "asked", "claimed"), [("5", "a", "none"), ("1", "b", "a"), ("3", "c", "b")])
def test_a_level_below_the_one_asked_for_is_refused(number, asked, claimed, desk):
    with pytest.raises(PromotionError, match=f"claim level is '{claimed}'.*asks for '{asked}'.*forget.kl"):
        promote(replace(desk, level=asked), number)
    assert desk.champion() is None and desk.ledger.entries() == []


def test_a_level_above_the_one_asked_for_is_fine(desk):
    assert promote(replace(desk, level="b"), "4").facts["claim_level"] == "d"


def test_a_level_that_was_raised_by_hand_is_noticed(desk):
    desk.client.set_model_version_tag(NAME, "5", "claim_level", "d")
    with pytest.raises(PromotionError, match="changed by hand"):
        promote(desk, "5")


def test_a_version_that_was_never_checked_is_refused(desk):
    desk.client.delete_model_version_tag(NAME, "1", "parity")
    with pytest.raises(PromotionError, match="never compared"):
        promote(desk, "1")


def test_a_version_whose_run_is_gone_is_refused(desk):
    run = desk.client.get_run(desk.version("1").run_id)
    desk.client.set_tag(run.info.run_id, "mlflow.parentRunId", "0" * 32)
    with pytest.raises(PromotionError, match="evaluation is gone"):
        promote(desk, "1")


def test_other_classes_or_shapes_are_refused(desk, tmp_path):
    promote(desk, "1")
    other = put(tmp_path, "A", "colour")
    with pytest.raises(PromotionError, match=r"takes images \(12, 10, 3\)"):
        promote(desk, other.version)


def test_changed_files_are_refused(desk, tmp_path):
    version = put(tmp_path, "B", "mlp")
    servable = Path(mlflow.artifacts.download_artifacts(version.uri)) / "artifacts/servable"
    kept = (servable / "model.safetensors").read_bytes()
    (servable / "model.safetensors").write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(ManifestError, match=r"model\.safetensors"):
        promote(desk, version.version)
    # Another model with a manifest of its own, in the same place.
    (servable / "model.safetensors").write_bytes(kept)
    other = Path(mlflow.artifacts.download_artifacts(desk.version("1").uri)) / "artifacts/servable"
    shutil.rmtree(servable)
    shutil.copytree(other, servable)
    with pytest.raises(PromotionError, match="not what was registered"):
        promote(desk, version.version)


def test_a_version_that_remembers_is_refused(desk):
    promote(desk, "1")  # forgets A
    with pytest.raises(PromotionError, match="remembers rows that version 1 had forgotten"):
        promote(desk, "4")  # forgets C
    promote(desk, "3")  # forgets B, which holds A
    with pytest.raises(PromotionError, match="remembers rows that version 3"):
        promote(desk, "2")  # forgets A only


def test_forgetting_that_cannot_be_shown_is_refused(desk, tmp_path):
    promote(desk, "1")
    blind = replace(desk, forgotten=ForgottenRows(tmp_path / "elsewhere", REQUESTS["B"], ["r1", "r2", "r3"]))
    with pytest.raises(PromotionError, match="cannot be shown"):
        promote(blind, "3")


def test_the_rows_of_a_promoted_request_are_kept(desk, tmp_path):
    at_hand = replace(desk, forgotten=ForgottenRows(tmp_path / "new", REQUESTS["A"], ["r1", "r2"]))
    with pytest.raises(PromotionError, match="another request"):
        promote(at_hand, "3")
    promote(at_hand, "1")
    assert ForgottenRows(tmp_path / "new").knows(REQUESTS["A"])


def test_the_original_is_refused(desk):
    desk.client.delete_model_version_tag(NAME, "1", "request")
    with pytest.raises(PromotionError, match="nothing says what it forgot"):
        promote(desk, "1")


def test_a_reason_a_version_and_a_change_are_needed(desk):
    for empty in ("", " \n"):
        with pytest.raises(PromotionError, match="a reason is needed"):
            promote(desk, "1", empty)
    with pytest.raises(TrackingError, match="version 99"):
        promote(desk, "99")
    assert desk.version(CHALLENGER).version == "5"
    with pytest.raises(PromotionError, match="no champion"):
        desk.version(CHAMPION)
    promote(desk, "1")
    with pytest.raises(PromotionError, match="the champion already"):
        promote(desk, "1")


def test_a_decision_made_meanwhile_stops_this_one(desk):
    version = desk.version("2")
    promote(desk, "1")
    with pytest.raises(LedgerError, match="meanwhile"):
        desk.promote(version, "did not see the other", GENESIS, {})
    assert desk.champion().version == "1"


def test_an_alias_that_does_not_move_is_withdrawn_from_the_ledger(desk, tmp_path):
    promote(desk, "1")
    version, head = desk.version("2"), desk.history().head
    with sqlite3.connect(tmp_path / "mlflow.db") as db:
        db.execute("CREATE TRIGGER stop BEFORE UPDATE ON registered_model_aliases BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(TrackingError):
        desk.promote(version, "try", head, {})
    assert desk.champion().version == "1" and desk.history().champion["version"] == "1"
    assert [e.kind for e in desk.ledger.entries()] == ["promotion", "promotion", "withdrawn"]
    assert desk.audit() == []


def test_rollback_restores_the_champion_before(desk):
    promote(desk, "1")
    with pytest.raises(PromotionError, match="only champion there was"):
        desk.rollback("why")
    promote(desk, "2")
    entry = desk.rollback("version 2 is slow")
    assert desk.champion().version == "1" and entry.facts["instead_of"] == "2" and desk.audit() == []
    promote(desk, "2")
    assert desk.champion().version == "2"


def test_rollback_to_what_remembers_is_refused(desk):
    with pytest.raises(PromotionError, match="knows no promotion"):
        desk.rollback("why")
    promote(desk, "1")  # forgets A
    promote(desk, "3")  # forgets B, more than A
    with pytest.raises(PromotionError, match=r"no rollback to version 1:\n- it remembers rows that version 3"):
        desk.rollback("version 3 is worse")
    assert desk.champion().version == "3" and desk.audit() == []


def test_rollback_to_a_deleted_version_is_refused(desk):
    promote(desk, "1")
    promote(desk, "2")
    desk.client.delete_model_version(NAME, "1")
    with pytest.raises(TrackingError, match="version 1"):
        desk.rollback("why")
    assert desk.champion().version == "2"


def test_a_move_by_hand_is_noticed_and_can_be_undone(desk):
    promote(desk, "1")
    by_hand(desk, "5")
    found = desk.audit()
    assert "version 5 was made champion by hand: version 1 was promoted last" in found[0]
    assert "does not pass" in found[0] and "claim level is 'none'" in found[1]
    with pytest.raises(PromotionError, match="claim level"):
        promote(desk, "5")
    assert desk.rollback("nobody looked at it").facts["by_hand"] is True
    assert desk.champion().version == "1" and desk.audit() == []


def test_a_good_move_by_hand_can_be_put_on_record(desk):
    by_hand(desk, "1")
    assert "none was ever promoted" in desk.audit()[0] and "passes the gates" in desk.audit()[0]
    assert promote(desk, "1").facts["by_hand"] is True
    assert desk.audit() == []


def test_what_was_forgotten_by_hand_counts_too(desk):
    promote(desk, "1")
    by_hand(desk, "3")  # forgets B
    with pytest.raises(PromotionError, match="remembers rows that version 3"):
        desk.rollback("it was moved by hand")


def test_a_removed_alias_is_noticed_and_put_back(desk):
    promote(desk, "1")
    desk.client.delete_registered_model_alias(NAME, CHAMPION)
    assert "was removed by hand" in desk.audit()[0]
    desk.rollback("it was removed by accident")
    assert desk.champion().version == "1" and desk.audit() == []


def test_a_cut_ledger_is_noticed(desk):
    promote(desk, "1")
    promote(desk, "2")
    lines = desk.ledger.path.read_text().splitlines(True)
    desk.ledger.path.write_text(lines[0])
    with pytest.raises(LedgerError, match="cut off"):
        desk.audit()
