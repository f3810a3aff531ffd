"""The page on the command line: what `expunge COMMAND --help` says, from typer."""

from __future__ import annotations

import re

import typer
from typer.cli import get_docs_for_click

from expunge.cli import app

# The list of commands with their descriptions cut off; the page itself has them in full.
SHORTENED = re.compile(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+\n")
INTRODUCTION = """# Command line

`expunge --help` lists the commands, `expunge COMMAND --help` describes one. Every command that can fail prints one line
that names the file or key, and ends with status 2.

"""


def commands_page() -> str:
    """Every command with its arguments and options, as Markdown."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="expunge", title="expunge")
    return INTRODUCTION + SHORTENED.sub("", text.replace("# expunge", "", 1))
