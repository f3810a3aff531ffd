"""Requests that arrive one after another: forget moments add up, retained rows are never read."""

from __future__ import annotations

from expunge.core.moments import Moments


class Accumulated:
    """The state after any number of requests: refit any method on `retain` and `forget`, at the cost of the new rows.

    After requests 1 .. k the moments are those of one joint request for all their rows, so the refitted map is too.
    """

    def __init__(self, total: Moments) -> None:
        self.retain = total
        self.forget = Moments(total.dim, total.device)
        self.rounds = 0

    def __repr__(self) -> str:
        return f"Accumulated(rounds={self.rounds}, retained={self.retain.n}, forgotten={self.forget.n})"

    def add(self, forget: Moments) -> Accumulated:
        """One more request. Raises DataError, changing nothing, when its rows are not among those still retained."""
        retain = self.retain - forget
        self.forget = self.forget + forget
        self.retain = retain
        self.rounds += 1
        return self
