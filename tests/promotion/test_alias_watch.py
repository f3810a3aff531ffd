"""Test `settle_alias` and `settle_all` after the alias `champion` was moved as MLflow's web page moves it.

A version that passes the gates is put on record; otherwise the alias goes back to the champion before.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from expunge.promotion.alias_watch import BY, NO_REASON, REASON, REFUSED, settle_alias, settle_all
from expunge.promotion.promoter import MOVED_BY
from expunge.system.errors import LedgerError
from expunge.tracking import CHAMPION, models_of_ours
from tests.promotion.conftest import NAME


def click(promoter, number: str, **tags: str) -> None:
    """Set tags and move the alias `champion`, as a person does on the page of the version in MLflow."""
    for key, value in tags.items():
        promoter.client.set_model_version_tag(promoter.name, number, key, value)
    promoter.client.set_registered_model_alias(promoter.name, CHAMPION, number)


def kinds(promoter) -> list[str]:
    return [e.kind for e in promoter.ledger.entries()]


def test_nothing_moved_is_nothing_to_do(promoter):
    assert settle_alias(promoter) is None and promoter.ledger.entries() == []


def test_a_version_that_passes_is_put_on_record_with_reason_and_name(promoter):
    click(promoter, "1", **{REASON: "  approved on Friday ", BY: "Ada"})
    settled = settle_alias(promoter)
    assert settled.promoted and settled.version == "1" and "passes the gates" in settled.words
    facts = promoter.ledger.entries()[-1].facts
    assert facts["reason"] == "approved on Friday" and facts["who"] == "Ada" and facts["by_hand"] is True
    assert promoter.champion().version == "1" and promoter.audit() == []
    assert settle_alias(promoter) is None


def test_the_account_that_the_server_recorded_is_the_name_in_the_ledger(promoter):
    click(promoter, "1", **{MOVED_BY: "ada", BY: "somebody else"})
    assert settle_alias(promoter).promoted
    assert [e.facts["who"] for e in promoter.ledger.entries()] == ["ada", "ada"]
    click(promoter, "5", **{MOVED_BY: "bob"})
    assert not settle_alias(promoter).promoted
    assert [(e.kind, e.facts["who"]) for e in promoter.ledger.entries()][2:] == [
        ("moved by hand", "bob"),
        ("rollback", "watcher"),
    ]


@pytest.mark.parametrize(
    ("description", "reason"),
    [("A result.\n\n**Reason:** looked at it\nmore", "looked at it"), ("for no reason: none", NO_REASON)],
)
def test_the_reason_may_stand_in_the_description(promoter, description, reason):
    promoter.client.update_model_version(NAME, "1", description)
    click(promoter, "1")
    assert settle_alias(promoter).promoted
    facts = promoter.ledger.entries()[-1].facts
    assert facts["reason"].strip("* ") == reason and "who" not in facts


def test_of_a_version_that_fails_the_alias_goes_back_and_a_tag_says_why(promoter):
    click(promoter, "1")
    assert settle_alias(promoter).promoted
    click(promoter, "5")
    settled = settle_alias(promoter)
    assert not settled.promoted and promoter.champion().version == "1" and promoter.audit() == []
    why = promoter.version("5").tags[REFUSED]
    assert "shown of it: none" in why and "version 1 is the champion again" in why
    assert kinds(promoter)[-2:] == ["moved by hand", "rollback"]
    assert settle_alias(promoter) is None


def test_without_a_champion_the_alias_goes_away_again(promoter):
    click(promoter, "5")
    assert "no champion again" in settle_alias(promoter).words
    assert promoter.champion() is None and settle_alias(promoter) is None


def test_forgetting_is_not_taken_back_by_a_click(promoter):
    click(promoter, "3")  # Version 3 forgets B, which contains A.
    assert settle_alias(promoter).promoted
    click(promoter, "1")
    assert not settle_alias(promoter).promoted
    assert "remembers rows that version 3 had forgotten" in promoter.version("1").tags[REFUSED]
    assert promoter.champion().version == "3"


def test_a_removed_alias_comes_back(promoter):
    click(promoter, "1")
    settle_alias(promoter)
    promoter.client.delete_registered_model_alias(NAME, CHAMPION)
    settled = settle_alias(promoter)
    assert settled.version is None and not settled.promoted and "was removed" in settled.words
    assert promoter.champion().version == "1"


def test_a_version_that_passes_later_loses_the_tag(promoter):
    strict = replace(promoter, least="features")
    click(strict, "1")
    assert not settle_alias(strict).promoted and REFUSED in promoter.version("1").tags
    click(promoter, "1")
    assert settle_alias(promoter).promoted and REFUSED not in promoter.version("1").tags


def test_a_copy_is_gated_under_its_new_name(promoter):
    """The button "Promote model" of MLflow copies a version to another registered model."""
    for number in ("1", "5"):
        promoter.client.copy_model_version(f"models:/{NAME}/{number}", "production")
    assert models_of_ours(promoter.client) == [NAME, "production"]
    copies = replace(promoter, name="production")
    click(copies, "1", **{REASON: "to production"})
    click(promoter, "5")
    done = list(settle_all([promoter, copies]))
    assert [(d.model, d.promoted) for d in done] == [(NAME, False), ("production", True)]
    assert copies.ledger.entries()[-1].facts["claims"] == promoter.version("1").tags["claims"]
    click(copies, "2")
    assert not settle_alias(copies).promoted and copies.champion().version == "1"


def test_a_decision_that_came_between_is_left_to_the_next_look(promoter, monkeypatch):
    click(promoter, "1")
    append = type(promoter.ledger).append

    def interrupted(self, kind, facts, **more):
        if kind == "promotion":
            raise LedgerError("something was decided meanwhile")
        return append(self, kind, facts, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(promoter.ledger), "append", interrupted)
        (left,) = settle_all([promoter])
    assert not left.promoted and "not settled yet" in left.words and promoter.champion().version == "1"
    assert settle_alias(promoter).promoted
