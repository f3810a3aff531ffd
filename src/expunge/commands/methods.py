"""methods: every method with its requests, what it needs and changes, its cost and source, and what was measured."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from typing import Annotated

import typer
from rich.table import Table

from expunge.report.console import console
from expunge.system import plugins
from expunge.system.errors import ConfigError
from expunge.workspaces.template import text_of


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(methods)


def methods(as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False) -> None:
    """List the methods that params.yaml may name, and what each is for."""
    from expunge.methods.method import load_installed
    from expunge.methods.table import METHODS
    from expunge.results.comparators_page import NOT_MEASURED, claims

    facts = {name: method.kind.facts for name, method in METHODS.items()}
    packages = {}
    for name in plugins.names("methods"):
        if name in METHODS:  # ours, whatever a package declares
            continue
        try:
            facts[name] = load_installed(name).kind.facts
        except ConfigError as e:  # the others are listed all the same
            typer.echo(f"not listed: {e}", err=True)
        else:
            packages[name] = plugins.package_of("methods", name)
    measured = claims(text_of("docs/comparators.md"))
    claim = {name: measured.get(name, NOT_MEASURED) for name in facts}
    if as_json:
        more = {name: {"package": packages.get(name), "claim": claim[name]} for name in facts}
        typer.echo(dumps({name: {**asdict(f), **more[name]} for name, f in facts.items()}, indent=2))
        return
    table = Table("method", "requests", "needs", "changes", "cost", "source", "claim", box=None, pad_edge=False)
    for name, f in facts.items():
        source = f"{f.source} ({packages[name]})" if name in packages else f.source
        table.add_row(name, ", ".join(f.requests), ", ".join(f.needs), f.changes, f.cost, source, claim[name])
    console(width=260).print(table)  # in a pipe one line per method
