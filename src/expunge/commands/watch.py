"""watch: the gate behind the alias that people move in MLflow's own page."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from expunge.commands.place import need_runs
from expunge.commands.registry import LedgerPath, session
from expunge.system.errors import TrackingError
from expunge.system.paths import LEDGER


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(watch)


def watch(
    model: Annotated[
        list[str] | None, typer.Option(help="Registered model; by default every model of this pipeline.")
    ] = None,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two checks.")] = 15.0,
    once: Annotated[bool, typer.Option("--once", help="Check once and exit.")] = False,
    listen: Annotated[
        str | None,
        typer.Option(help="ADDRESS:PORT on loopback for a webhook of the server, so that a move is checked at once."),
    ] = None,
    webhook_url: Annotated[
        str | None, typer.Option(help="Where the server reaches --listen, if a proxy is between them.")
    ] = None,
    ledger: LedgerPath = LEDGER,
) -> None:
    """Apply the gates to what people do in the MLflow UI: an alias `champion` set there is recorded, or taken back.

    A version that passes the gates gets a ledger entry, with the reason from its tag `reason` or from a line
    "Reason: ..." in its description, and the name from its tag `by`. From any other version the alias goes back to the
    champion on record, and the version's tag `not_promoted` says why. Copies made with the button "Promote model" are
    checked under their new name.
    """
    if listen is None and webhook_url is not None:
        raise TrackingError("--webhook-url: give --listen too, the address to which the proxy passes deliveries")
    if once and listen is not None:
        raise TrackingError("--listen: a single check waits for no deliveries; leave out --once or --listen")
    need_runs()

    def check() -> None:
        for name, words in _settled(model, ledger):
            typer.echo(f"{name}: {words}")

    if once:
        check()
    else:
        _watch(check, every, listen, webhook_url)


def _settled(model: list[str] | None, ledger: Path) -> Iterator[tuple[str, str]]:
    """Settle the aliases of all models. Promoters are made anew: models are registered meanwhile, requests change."""
    from expunge.promotion.alias_watch import settle_all
    from expunge.tracking import connect, models_of_ours

    names = model or models_of_ours(connect())
    for settled in settle_all([session(name, ledger).promoter for name in names]):
        yield settled.model, settled.words


def _watch(check: Callable[[], None], every: float, listen: str | None, url: str | None) -> None:
    """Check again and again. A server that does not answer is asked again at the next check, not given up."""
    from expunge.promotion.waking import waker

    signal.signal(signal.SIGTERM, _exit)  # so that the webhook is removed from the server
    with ExitStack() as stack:
        pause: Callable[[], object] = partial(time.sleep, every)
        if listen is not None:
            pause = stack.enter_context(waker(listen, url, every, typer.echo)).pause
        check()  # after the webhook is registered, so that no move falls between the two
        while True:
            pause()
            try:
                check()
            except TrackingError as e:
                typer.echo(f"not checked, will be tried again: {e}")


def _exit(number: int, _: object) -> None:
    raise SystemExit(128 + number)
