"""reproduce: a paper's setting by name, from its files to one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from expunge.report.console import console
from expunge.reproduce.costs import RATES
from expunge.reproduce.listing import listed
from expunge.reproduce.switches import chosen
from expunge.system.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(reproduce)


def reproduce(
    preset: Annotated[str | None, typer.Argument(help="Name of a preset, from --list.")] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List every preset with its estimated cost.")] = False,
    sample: Annotated[
        bool,
        typer.Option("--sample", help="Try the whole path in minutes: a few drawn pictures, real formats, one epoch."),
    ] = False,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data set, if it should not be fetched.")] = None,
    artefact: Annotated[
        list[str] | None, typer.Option(help="Switch on a known artefact of published numbers. May be repeated.")
    ] = None,
    as_published: Annotated[bool, typer.Option("--as-published", help="Switch on all known artefacts.")] = False,
) -> None:
    """Fetch and run a preset, and write one page with our numbers beside the published ones.

    An interrupted run continues where it stopped.
    """
    root = Path.cwd()
    if show_list:
        _print_list(root)
        return
    if preset is None:
        raise ConfigError("no preset is named; choose one from `expunge reproduce --list`")
    from expunge.reproduce.run import Wanted, reproduce_preset

    wanted = Wanted(chosen(artefact or [], as_published), sample, data_root)
    written = reproduce_preset(root, preset, wanted)
    typer.echo(f"page: {written.relative_to(root)}")


def _print_list(root: Path) -> None:
    table = Table("preset", "what", *RATES, "disk", "memory", box=None, pad_edge=False)
    for preset in listed(root):
        table.add_row(preset.name, preset.title, *preset.times, preset.disk, preset.memory)
    console(width=200).print(table)
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in RATES.items())
    typer.echo(
        f"The times are estimates: pictures x passes / rate, at multiply-adds per second of {rates}. None was "
        "measured, since there was no GPU. src/expunge/reproduce/costs.py has every number."
    )
