"""watch: the gate behind the alias that people move in MLflow's own page."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.commands.place import need_runs
from expunge.commands.registry import LedgerPath, session
from expunge.system.paths import LEDGER

if TYPE_CHECKING:
    from expunge.promotion.promoter import Promoter


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(watch)


def watch(
    model: Annotated[
        list[str] | None, typer.Option(help="Registered model; by default every model of this pipeline.")
    ] = None,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two checks.")] = 15.0,
    once: Annotated[bool, typer.Option("--once", help="Check once and exit.")] = False,
    ledger: LedgerPath = LEDGER,
) -> None:
    """Apply the gates to what people do in the MLflow UI: an alias `champion` set there is recorded, or taken back.

    A version that passes the gates gets a ledger entry, with the reason from its tag `reason` or from a line
    "Reason: ..." in its description, and the name from its tag `by`. From any other version the alias goes back to the
    champion on record, and the version's tag `not_promoted` says why. Copies made with the button "Promote model" are
    checked under their new name.
    """
    from expunge.promotion.alias_watch import settle_all
    from expunge.tracking import connect, models_of_ours

    need_runs()

    def promoters() -> list[Promoter]:
        """Anew for every look: models are registered meanwhile, and requests change."""
        return [session(name, ledger).promoter for name in model or models_of_ours(connect())]

    while True:
        for settled in settle_all(promoters()):
            typer.echo(f"{settled.model}: {settled.words}")
        if once:
            return
        time.sleep(every)
