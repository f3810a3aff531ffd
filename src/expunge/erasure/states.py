"""The life of an erasure request: its states, the moves between them, and when it is due."""

from __future__ import annotations

import calendar
from datetime import date
from enum import StrEnum

from expunge.system.errors import RequestError

MOST_MONTHS = 3  # GDPR Art. 12(3): one month, extendable by two


class State(StrEnum):
    """The state of an erasure request; MOVES defines the allowed transitions."""

    received = "received"
    verified = "verified"
    scheduled = "scheduled"
    running = "running"
    awaiting_approval = "awaiting approval"
    completed = "completed"
    refused = "refused"
    extended = "extended"


FINAL = frozenset({State.completed, State.refused})
OPEN = frozenset(State) - FINAL
# States from which a request can join a run. An extended request that was never verified has to be verified first.
WAITING = frozenset({State.verified, State.scheduled, State.extended})

MOVES: dict[State, frozenset[State]] = {
    State.received: frozenset({State.verified, State.refused, State.extended}),
    State.verified: frozenset({State.scheduled, State.refused, State.extended}),
    State.extended: frozenset({State.verified, State.scheduled, State.refused, State.extended}),
    State.scheduled: frozenset({State.running, State.refused, State.extended}),
    # Back to scheduled when a run is given up; completed without approval if no training row is requested.
    State.running: frozenset({State.awaiting_approval, State.completed, State.scheduled, State.refused}),
    # After the approval a request runs again, for promotion, sweep and certificate.
    State.awaiting_approval: frozenset({State.running, State.scheduled, State.refused}),
    State.completed: frozenset(),
    State.refused: frozenset(),
}


def check_move(request: str, old: State, new: State) -> None:
    """Raise RequestError, which names the allowed states, if the request cannot move from `old` to `new`."""
    if new not in MOVES[old]:
        allowed = ", ".join(s for s in State if s in MOVES[old]) or "nothing else: this state is final"
        raise RequestError(f"request {request} is {old} and cannot become {new}; it can become {allowed}")


def due_date(received: date, months: int) -> date:
    """Return the date `months` calendar months after `received`.

    It is the same day of the month, or the last day of a shorter month (Regulation 1182/71, Art. 3(2)c).
    """
    year, month = divmod(received.year * 12 + received.month - 1 + months, 12)
    return date(year, month + 1, min(received.day, calendar.monthrange(year, month + 1)[1]))


def urgency(due: date, today: date, soon: int) -> str:
    """Return "overdue", "due soon" (within `soon` days) or ""."""
    left = (due - today).days
    return "overdue" if left < 0 else "due soon" if left <= soon else ""
