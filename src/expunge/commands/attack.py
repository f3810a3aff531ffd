"""attack: the serving version against fresh seeds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from expunge.commands.registry import LedgerPath, Model, session
from expunge.system.errors import PromotionError
from expunge.system.files import write_json
from expunge.system.paths import AUDIT, LEDGER


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(attack)


def attack(
    seeds: Annotated[int, typer.Option(min=1, help="Number of fresh seeds. Means over them are compared.")] = 3,
    first_seed: Annotated[
        int | None, typer.Option(help="The first seed; the others follow it. By default today's date, YYYYMMDD.")
    ] = None,
    model: Model = None,
    ledger: LedgerPath = LEDGER,
) -> None:
    """Attack the champion again, from the files that are served, and compare the results with its registered report.

    Writes reports/audit.json. Exits with status 2 if a gated value worsened beyond its margin, or if the
    ledger and the registry disagree.
    """
    from expunge.promotion.attack import attack_champion

    first = int(datetime.now(UTC).strftime("%Y%m%d")) if first_seed is None else first_seed
    found = attack_champion(session(model, ledger), range(first, first + seeds))
    write_json(AUDIT, found)
    serving = f"version {found['version']} of {found['model']}"
    for row in found["compared"]:
        typer.echo(f"{row['gate']}: then {row['then']:.3f}, now {row['now']:.3f} (spread {row['spread']:.3f})")
    for row in found["left_out"]:
        typer.echo(f"{row['gate']}: not compared, {row['reason']}")
    if problems := found["worsened"] + found["ledger"]:
        raise PromotionError(f"{serving}:\n" + "\n".join(f"- {problem}" for problem in problems))
    typer.echo(f"{serving}: no worse than its report, over {seeds} fresh seeds. The details are in {AUDIT}")
