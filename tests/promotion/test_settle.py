"""Test that a promotion that was killed between the ledger and the alias is finished exactly once.

Also test that a move of the alias by hand is recorded in the ledger.
"""

from __future__ import annotations

import os
import signal

import pytest

from expunge.promotion.history import BY_HAND, PROMOTION
from expunge.tracking import CHAMPION
from tests import killing
from tests.promotion.conftest import NAME

SEEN = {"batch": "B-1", "approved_by": "cem"}


def go_on(promoter, number: str = "1"):
    """Settle the promotion that the ledger already holds, or promote, as the completion of an erasure does."""
    version = promoter.version(number)
    return promoter.settle(version, SEEN) or promoter.promote(version, "approved", promoter.history().head, SEEN)


def promotions(promoter) -> list[str]:
    return [e.facts["version"] for e in promoter.ledger.entries() if e.kind == PROMOTION]


@pytest.mark.slow
def test_nothing_is_settled_that_was_not_promoted(promoter):
    assert promoter.settle(promoter.version("1"), SEEN) is None
    promoter.promote(promoter.version("1"), "by a person", promoter.history().head, {})
    # The person's promotion was another decision about this version.
    assert promoter.settle(promoter.version("1"), SEEN) is None
    assert promoter.settle(promoter.version("2"), SEEN) is None


def test_a_promotion_is_finished_and_not_repeated(promoter):
    entry = go_on(promoter)
    # Without the alias, the state is that of a process that died before it moved the alias.
    promoter.client.delete_registered_model_alias(NAME, CHAMPION)
    assert go_on(promoter) == entry and promotions(promoter) == ["1"]
    assert promoter.champion().version == "1" and promoter.audit() == []


def test_a_move_by_hand_is_written_down_once(promoter):
    assert promoter.record_by_hand() is None
    go_on(promoter)
    assert promoter.record_by_hand() is None
    promoter.client.set_registered_model_alias(NAME, CHAMPION, "4")
    entry = promoter.record_by_hand()
    assert entry.kind == BY_HAND and entry.facts["version"] == "4" and entry.facts["instead_of"] == "1"
    assert promoter.record_by_hand() == entry and promoter.history().champion["version"] == "1"
    promoter.client.set_registered_model_alias(NAME, CHAMPION, "2")
    assert promoter.record_by_hand().facts["version"] == "2"
    promoter.client.delete_registered_model_alias(NAME, CHAMPION)
    assert promoter.record_by_hand().facts["version"] is None
    assert len([e for e in promoter.ledger.entries() if e.kind == BY_HAND]) == 3
    assert "was removed by hand" in promoter.audit()[0]


def in_a_child(promoter, until: int) -> tuple[int, int]:
    """Promote in a child process that is killed at its `until`-th statement or file operation (0: it is not killed).

    Counting starts at the first write, which is the signed head that announces the ledger entry. Return the exit
    status and the number of events.
    """
    writing = False

    def asked(name: str, path: str) -> bool:
        nonlocal writing
        writing = writing or ".ledger.next" in path
        return name in ("open", "os.rename", "os.remove") and "ledger" in path

    return killing.in_a_child(lambda: go_on(promoter), until, asked, lambda: writing)


@pytest.mark.parametrize("moment", range(1, 19, 2))
def test_a_promotion_that_was_killed_is_finished_by_the_next(moment, promoter):
    status, _ = in_a_child(promoter, moment)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    promoter.ledger.verify()
    assert go_on(promoter).facts["version"] == "1"
    assert promotions(promoter) == ["1"] and promoter.champion().version == "1" and promoter.audit() == []


def test_a_promotion_that_is_not_killed_ends_by_itself(promoter):
    status, seen = in_a_child(promoter, 0)
    assert status == 0 and seen >= 18  # The moments of the test above must all occur.
    assert promotions(promoter) == ["1"] and promoter.audit() == []
