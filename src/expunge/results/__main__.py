"""python -m expunge.results: run the experiments of docs/results.md and write the page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from expunge.results.page import page, section, sections_of
from expunge.results.pooled import pool
from expunge.results.variants import HOME, VARIANTS, Variant, finished, run_variants
from expunge.stages import run
from expunge.system.errors import ExpungeError
from expunge.system.files import write_text
from expunge.system.progress import log_message

PAGE = Path("docs/results.md")


def write_page(root: Path, variants: Sequence[Variant]) -> None:
    """Write docs/results.md from the finished runs. The page keeps its sections of experiments that did not run here.

    Raises ExpungeError if no run is finished.
    """
    found = {v.title: section(v, pool(workspaces)) for v in variants if (workspaces := finished(root, v))}
    if not found:
        raise ExpungeError(f"{root / HOME}: no finished experiment; run python -m expunge.results")
    path = root / PAGE
    if path.is_file():
        found = sections_of(path.read_text(encoding="utf-8"), "## ") | found
    write_text(path, page([found[v.title] for v in variants if v.title in found]))
    log_message(f"results: {PAGE}")


def main() -> None:
    """Run the experiments that the command line names, and write docs/results.md."""
    named = "\n".join(
        f"  {v.name:<8} {v.title}; {len(v.seeds)} training seed{'s' * (len(v.seeds) > 1)}" for v in VARIANTS
    )
    parser = argparse.ArgumentParser(
        prog="python -m expunge.results",
        description="Run every experiment of docs/results.md and write the page. Each runs in a workspace below "
        f"{HOME}. What is finished and up to date is not run again, so an interrupted run continues.\n\n"
        f"experiments:\n{named}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("only", nargs="*", metavar="NAME", help="run only these experiments; by default all")
    parser.add_argument("--collect", action="store_true", help="run nothing; write the page from what is finished")
    arguments = parser.parse_args()
    unknown = set(arguments.only) - {v.name for v in VARIANTS}
    if unknown:
        parser.error(f"unknown experiment {', '.join(sorted(unknown))}; known: {', '.join(v.name for v in VARIANTS)}")
    if not arguments.collect:
        run_variants(Path.cwd(), [v for v in VARIANTS if not arguments.only or v.name in arguments.only])
    write_page(Path.cwd(), VARIANTS)


if __name__ == "__main__":
    run(main)
