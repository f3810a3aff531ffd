"""predict: a Parquet file through a registered version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.commands.registry import Model, Version, registered_servable


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(predict)


def predict(
    source: Annotated[Path, typer.Argument(help="Parquet file with a column `image` (file bytes) or `text`.")],
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    version: Version = "champion",
    model: Model = None,
) -> None:
    """Score a Parquet file with a registered version, by default the champion.

    The output has one row per input row, in the same order: `sample_id` or `id` if there is one, `predicted`,
    `probability`, and `probabilities` over all classes. The names of the classes are in the file's metadata.
    """
    from expunge.promotion.scoring import score_parquet

    servable, _, uri = registered_servable(model, version)
    rows = score_parquet(servable, source, out, uri)
    typer.echo(f"{out}: {rows:,} rows, scored with {uri}")
