"""cuts: where the backbone can be cut, and what each cut costs."""

from __future__ import annotations

from typing import Annotated

import typer

from expunge.config import load_config


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("cuts")(list_cuts)


def list_cuts(
    rows: Annotated[int, typer.Option(help="Number of rows to store activations of; 0: the training rows.")] = 0,
) -> None:
    """List the cuts of the model in params.yaml: size of the activations, share of operations and parameters above."""
    from expunge.models.cut_costs import cut_costs
    from expunge.training.cut_check import classifier_of_params, training_rows

    config = load_config()
    classifier = classifier_of_params(config)
    rows = rows or training_rows()
    costs = cut_costs(classifier)
    if not costs:
        typer.echo(f"{classifier.card.name}: this backbone has no place at which it can be cut")
        return
    width = max(len(c.name) for c in costs)
    disk = f"GB for {rows:,} rows" if rows else ""
    typer.echo(
        f"{'cut':{width}}  {'activations':>16}  {'kB each':>9}  {'cost above':>10}  {'params above':>12}  {disk}"
    )
    for c in costs:
        shape = " x ".join(map(str, c.shape))
        size = f"{c.gb(rows):.2f}" if rows else ""
        typer.echo(
            f"{c.name:{width}}  {shape:>16}  {c.kb:9.1f}  {c.share_above:10.1%}  {c.parameters_above:12,}  {size}"
        )
