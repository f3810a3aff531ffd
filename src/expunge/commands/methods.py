"""methods: every method with the requests it answers, what it needs and changes, what it costs, and its source."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(methods)


def methods(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List the methods that params.yaml may name, and what each is for."""
    from expunge.methods.method import load_installed
    from expunge.methods.table import METHODS
    from expunge.system import plugins
    from expunge.system.errors import ConfigError

    facts = {name: method.kind.facts for name, method in METHODS.items()}
    packages = {}
    for name in plugins.names("methods"):
        if name in METHODS:  # ours, whatever a package declares
            continue
        try:
            facts[name] = load_installed(name).kind.facts
        except ConfigError as e:  # the others are listed all the same
            typer.echo(f"left out: {e}", err=True)
        else:
            packages[name] = plugins.package_of("methods", name)
    if as_json:
        typer.echo(dumps({name: {**asdict(f), "package": packages.get(name)} for name, f in facts.items()}, indent=2))
        return
    table = Table("method", "requests", "needs", "changes", "cost", "source", box=None, pad_edge=False)
    for name, f in facts.items():
        source = f"{f.source} ({packages[name]})" if name in packages else f.source
        table.add_row(name, ", ".join(f.requests), ", ".join(f.needs), f.changes, f.cost, source)
    console = Console()
    # Piped, it is one line per method: a width of 80 would break names and papers.
    (console if console.is_terminal else Console(width=200)).print(table)
