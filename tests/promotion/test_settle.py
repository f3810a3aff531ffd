"""A promotion that died between ledger and alias is finished, once; an alias that was moved by hand is written down."""

from __future__ import annotations

import os
import signal

import pytest

from expunge.promotion.history import BY_HAND, PROMOTION
from expunge.tracking import CHAMPION
from tests import killing
from tests.promotion.conftest import NAME

SEEN = {"batch": "B-1", "approved_by": "cem"}


def go_on(desk, number: str = "1"):
    """As a completion does it."""
    version = desk.version(number)
    return desk.settle(version, SEEN) or desk.promote(version, "approved", desk.history().head, SEEN)


def promotions(desk) -> list[str]:
    return [e.facts["version"] for e in desk.ledger.entries() if e.kind == PROMOTION]


def test_nothing_is_settled_that_was_not_promoted(desk):
    assert desk.settle(desk.version("1"), SEEN) is None
    desk.promote(desk.version("1"), "by a person", desk.history().head, {})
    assert desk.settle(desk.version("1"), SEEN) is None  # another decision about the same version
    assert desk.settle(desk.version("2"), SEEN) is None


def test_a_promotion_is_finished_and_not_repeated(desk):
    entry = go_on(desk)
    desk.client.delete_registered_model_alias(NAME, CHAMPION)  # as if the process had died before
    assert go_on(desk) == entry and promotions(desk) == ["1"]
    assert desk.champion().version == "1" and desk.audit() == []


def test_a_move_by_hand_is_written_down_once(desk):
    assert desk.record_by_hand() is None
    go_on(desk)
    assert desk.record_by_hand() is None
    desk.client.set_registered_model_alias(NAME, CHAMPION, "4")
    entry = desk.record_by_hand()
    assert entry.kind == BY_HAND and entry.facts["version"] == "4" and entry.facts["instead_of"] == "1"
    assert desk.record_by_hand() == entry and desk.history().champion["version"] == "1"
    desk.client.set_registered_model_alias(NAME, CHAMPION, "2")
    assert desk.record_by_hand().facts["version"] == "2"
    desk.client.delete_registered_model_alias(NAME, CHAMPION)
    assert desk.record_by_hand().facts["version"] is None
    assert len([e for e in desk.ledger.entries() if e.kind == BY_HAND]) == 3
    assert "was removed by hand" in desk.audit()[0]


def in_a_child(desk, until: int) -> tuple[int, int]:
    """A promotion that is killed at its `until`-th statement or file operation, from its first write on: the signed
    head that announces the entry."""
    writing = False

    def asked(name: str, path: str) -> bool:
        nonlocal writing
        writing = writing or ".ledger.next" in path
        return name in ("open", "os.rename", "os.remove") and "ledger" in path

    return killing.in_a_child(lambda: go_on(desk), until, asked, lambda: writing)


@pytest.mark.parametrize("moment", range(1, 19, 2))
def test_killed_while_promoting(moment, desk):
    status, _ = in_a_child(desk, moment)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    desk.ledger.verify()
    assert go_on(desk).facts["version"] == "1"
    assert promotions(desk) == ["1"] and desk.champion().version == "1" and desk.audit() == []


def test_a_child_that_is_left_alone_ends(desk):
    status, seen = in_a_child(desk, 0)
    assert status == 0 and seen >= 18  # what the test above counts up to
    assert promotions(desk) == ["1"] and desk.audit() == []
