"""plugins: what installed packages bring along, and whether it can be used."""

from __future__ import annotations

from collections.abc import Iterator
from json import dumps
from typing import Annotated

import typer
from rich.table import Table

from expunge.report.console import console
from expunge.system import plugins as installed
from expunge.system.errors import ConfigError

OURS = "not used: Expunge itself has one of this name"


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(plugins)


def plugins(as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False) -> None:
    """List methods, readers, model families and metrics of other packages. Import each to see whether it loads.

    The exit status is always 0, because a plug-in that does not load stops only the runs that use it.
    """
    found = list(_found())
    if as_json:
        typer.echo(dumps(found, indent=2))
        return
    if not found:
        typer.echo("no installed package provides a plug-in; `expunge docs plugins` shows how to write one")
        return
    table = Table("kind", "name", "package", "loads", box=None, pad_edge=False)
    for line in found:
        table.add_row(line["kind"], line["name"], line["package"], line["problem"] or "yes")
    console(width=400).print(table)  # in a pipe one line per plug-in


def _found() -> Iterator[dict[str, str]]:
    """Kind, name, package with its version, and what is wrong with it, "" where nothing is."""
    from expunge.data.prepare import NAMED, SOURCES
    from expunge.evaluation.forget_metric import ForgetMetric
    from expunge.methods.method import load_installed
    from expunge.methods.table import METHODS
    from expunge.models.families import OWN, Family

    ours = {"methods": set(METHODS), "models": set(OWN), "readers": {*SOURCES, *(n.rstrip(":") for n in NAMED)}}
    for kind in installed.KINDS:
        for name in installed.names(kind):
            problem = ""
            try:
                if name in ours.get(kind, ()):
                    problem = OURS
                elif kind == "methods":
                    load_installed(name)
                else:
                    installed.load(kind, name, {"readers": None, "models": Family, "metrics": ForgetMetric}[kind])
            except ConfigError as e:
                problem = f"no: {str(e).partition(': ')[2]}"
            yield {"kind": kind, "name": name, "package": installed.package_of(kind, name), "problem": problem}
