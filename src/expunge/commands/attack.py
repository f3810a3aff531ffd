"""attack: the serving version against fresh seeds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from expunge.commands.registry import LedgerPath, Model
from expunge.system.errors import PromotionError
from expunge.system.files import write_json
from expunge.system.paths import AUDIT, LEDGER


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(attack)


def attack(
    seeds: Annotated[int, typer.Option(min=1, help="How many fresh seeds; their mean is compared.")] = 3,
    first_seed: Annotated[
        int | None, typer.Option(help="The first of them; the rest follow. From today's date when left out.")
    ] = None,
    model: Model = None,
    ledger: LedgerPath = LEDGER,
) -> None:
    """Attack the champion again, by the files that serve, and compare with the report it was registered with.

    Writes reports/audit.json. Exit status 2 where a gated value worsened beyond its margin in params.yaml, or where the
    ledger and the registry disagree.
    """
    from expunge.promotion.attack import attack_champion
    from expunge.promotion.session import ReviewSession

    first = int(datetime.now(UTC).strftime("%Y%m%d")) if first_seed is None else first_seed
    found = attack_champion(ReviewSession(model, ledger), range(first, first + seeds))
    write_json(AUDIT, found)
    serving = f"version {found['version']} of {found['model']}"
    for row in found["compared"]:
        typer.echo(f"{row['gate']}: then {row['then']:.3f}, now {row['now']:.3f} (spread {row['spread']:.3f})")
    for row in found["left_out"]:
        typer.echo(f"{row['gate']}: not compared, {row['reason']}")
    if problems := found["worsened"] + found["ledger"]:
        raise PromotionError(f"{serving}:\n" + "\n".join(f"- {problem}" for problem in problems))
    typer.echo(f"{serving}: no worse than its report, over {seeds} fresh seeds. Written to {AUDIT}")
