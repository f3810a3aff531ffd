"""Hook of mkdocs: adds the pages that are made from the code, and mends links that leave docs/."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from commands_page import commands_page
from mkdocs.structure.files import File, Files
from params_page import params_page
from summary_page import FILE, schema_file, summary_page

# A link to a file outside docs/ works in the repository, and has no target on the site.
OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\((?:\.\./)+([^)#]+)(?:#[^)]*)?\)")


def api_page(package: str, text: str, *options: str) -> str:
    """A page on which mkdocstrings describes the public names of `package`."""
    lines = [f"# {package}", "", text, "", f"::: {package}", "    options:", "      show_root_heading: false"]
    return "\n".join([*lines, *(f"      {option}" for option in options), ""])


PAGES: dict[str, Callable[[], str]] = {
    "reference/params.md": params_page,
    "reference/commands.md": commands_page,
    "reference/summary.md": summary_page,
    f"reference/{FILE}": schema_file,
    "reference/api/expunge.md": lambda: api_page("expunge", "The package at the top holds the version."),
    "reference/api/core.md": lambda: api_page("expunge.core", "Import every name below from `expunge.core`."),
    "reference/api/evaluation.md": lambda: api_page(
        "expunge.evaluation", "Import a name from the module that it stands under.", "show_submodules: true"
    ),
}


def on_files(files: Files, *, config: Any) -> Files:
    """Add the generated pages to the files of the site."""
    for name, page in PAGES.items():
        files.append(File.generated(config, name, content=page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with each link to a file outside docs/ replaced by its text and the path of the file."""
    return OUTSIDE.sub(r"\1 (`\2`)", markdown)
