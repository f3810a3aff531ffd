"""predict: a Parquet file through a registered version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(predict)


def predict(
    source: Annotated[Path, typer.Argument(help="Parquet file with a column `image` (file bytes) or `text`.")],
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    version: Annotated[str, typer.Option("--version", help="Version number, or an alias.")] = "champion",
    model: Annotated[
        str | None,
        typer.Option("--model", help="Registered model; by default the one that the last run registered."),
    ] = None,
) -> None:
    """Score a Parquet file with a registered version, by default the champion.

    The output has one row per input row, in the same order: `sample_id` or `id` if there is one, `predicted`,
    `probability`, and `probabilities` over all classes. The names of the classes are in the file's metadata.
    """
    from expunge.promotion.promoter import find
    from expunge.promotion.scoring import score_parquet
    from expunge.promotion.session import registered_name
    from expunge.tracking import connect, servable_of

    chosen = find(connect(), model or registered_name(), version)
    rows = score_parquet(servable_of(chosen)[0], source, out, chosen.uri)
    typer.echo(f"{out}: {rows:,} rows, scored with {chosen.uri}")
