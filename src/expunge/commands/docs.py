"""docs: the pages of docs/ at a terminal, those of the installed version."""

from __future__ import annotations

import sys
from typing import Annotated

import click
import typer

from expunge.system.errors import ExpungeError
from expunge.workspaces.template import files_below, text_of


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(docs)


def docs(
    name: Annotated[
        str | None, typer.Argument(help="Name of a page, such as check. Without it all are listed.")
    ] = None,
) -> None:
    """Print a page of the documentation, or a list of all pages."""
    pages = {n.removeprefix("docs/").removesuffix(".md"): n for n in files_below("docs") if n.endswith(".md")}
    if name is None:
        width = max(map(len, pages)) + 2
        for page, file in pages.items():
            typer.echo(f"{page:<{width}}{text_of(file).partition(chr(10))[0].lstrip('# ')}")
        return
    name = name.removeprefix("docs/").removesuffix(".md")
    if name not in pages:
        raise ExpungeError(f"docs {name}: no such page; choose one of {', '.join(pages)}")
    text = text_of(pages[name])
    if sys.stdout.isatty():
        click.echo_via_pager(text)
    else:
        typer.echo(text, nl=False)
