"""A promotion that died between ledger and alias is finished, once; an alias that was moved by hand is written down."""

from __future__ import annotations

import os
import signal

import pytest
from sqlalchemy import Engine, event

from expunge.promotion.history import BY_HAND, PROMOTION
from expunge.tracking import CHAMPION
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
    """Promote in a process that is killed at its `until`-th statement or file operation, from its first write on: the
    signed head that announces the entry."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        seen, writing = 0, False

        def count(*_: object) -> None:
            nonlocal seen
            seen += writing
            if writing and seen == until:
                os.kill(os.getpid(), signal.SIGKILL)

        def asked(name: str, arguments: tuple) -> None:
            nonlocal writing
            writing = writing or ".ledger.next" in str(arguments[0])
            if name in ("open", "os.rename", "os.remove") and "ledger" in str(arguments[0]):
                count()

        import sys

        sys.addaudithook(asked)
        event.listen(Engine, "before_cursor_execute", count)
        event.listen(Engine, "commit", count)
        try:
            go_on(desk)
            os.write(write, str(seen).encode())
        finally:
            os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        return status, int(pipe.read() or 0)


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
