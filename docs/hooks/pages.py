"""Hook of mkdocs: adds the pages that are made from the code, and mends links that leave docs/."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commands_page import commands_page
from mkdocs.structure.files import File, Files
from notebook_pages import notebook_files
from params_page import params_page
from summary_page import FILE, schema_file, summary_page

ROOT = Path(__file__).parents[2]
# A page that is named, and not linked yet.
NAMED = re.compile(r"(?<!\[)`docs/([\w-]+\.md)`")
NOTEBOOK = re.compile(r"(\]\([^)\s:]+)\.ipynb\)")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def root_page(name: str) -> str:
    """A page at the root of the repository, with its links as they are seen from docs/reference/."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return LINK.sub(lambda link: f"[{link.group(1)}](../../{link.group(2)}{link.group(3) or ''})", text).replace(
        "](../../docs/", "](../"
    )


def api_page(package: str, text: str) -> str:
    """A page on which mkdocstrings describes the public names of `package`."""
    lines = [f"# {package}", "", text, "", f"::: {package}", "    options:", "      show_root_heading: false", ""]
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {
    "reference/params.md": params_page,
    "reference/commands.md": commands_page,
    "reference/summary.md": summary_page,
    f"reference/{FILE}": schema_file,
    "reference/contributing.md": lambda: root_page("CONTRIBUTING.md"),
    "reference/changelog.md": lambda: root_page("CHANGELOG.md"),
    "reference/api/expunge.md": lambda: api_page("expunge", "The package at the top holds the version."),
    "reference/api/core.md": lambda: api_page("expunge.core", "Import every name below from `expunge.core`."),
    "reference/api/evaluation.md": lambda: api_page(
        "expunge.evaluation", "Import every name below from `expunge.evaluation`."
    ),
}


def on_files(files: Files, *, config: Any) -> Files:
    """Add the generated pages to the files of the site."""
    made = {name: page() for name, page in PAGES.items()} | notebook_files()
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page with links that work on the site.

    `docs/NAME.md` becomes a link. A link to a notebook becomes one to the page that is made from it. A link to a file
    outside docs/ becomes text, because the file is not on the site.
    """
    here = posixpath.dirname(page.file.src_uri)

    def linked(name: re.Match[str]) -> str:
        known = (ROOT / "docs" / name.group(1)).is_file()
        return f"[{name.group()}]({posixpath.relpath(name.group(1), here or '.')})" if known else name.group()

    def mended(link: re.Match[str]) -> str:
        text, target = link.group(1), posixpath.normpath(posixpath.join(here, link.group(2)))
        return f"{text} (`{target.removeprefix('../')}`)" if target.startswith("../") else link.group()

    return NAMED.sub(linked, LINK.sub(mended, NOTEBOOK.sub(r"\1.md)", markdown)))
