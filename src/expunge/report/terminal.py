"""Show the result of the last run on the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from expunge.report.tables import headline, not_proven, reasons, rows
from expunge.system.errors import ManifestError
from expunge.system.files import read_json
from expunge.system.paths import DATA_DOCS, REGISTRATION, REPORTS, SUMMARY

TITLE = "Every method beside the original and the retrained model"
CAPTION = "KL (nats) and agree (share of rows) compare with the retrained model on forgotten rows"


def print_result(reader: Path | None = None) -> None:
    """Print the table, the verdict and the places of further results of the run in the current directory.

    The places are paths from the directory `reader`, where the person stands who reads them; by default that is the
    current directory, too. Raises ManifestError if nothing has run yet.
    """
    if not SUMMARY.is_file():
        raise ManifestError(
            f"{SUMMARY}: no result yet; run `dvc repro`, or `expunge demo` for an example that takes a few minutes"
        )
    summary = read_json(SUMMARY)
    console = Console()
    if not console.is_terminal:  # rich assumes 80 columns for a pipe and would cut the numbers
        console = Console(width=200)
    for table in tables(rows(summary), summary["selected"], console.width):
        console.print(table)
    console.print(headline(summary).replace("**", ""), highlight=False)
    if why := reasons(summary):
        listed = Table("method", "why not", box=None, pad_edge=False)
        for line in why:
            listed.add_row(*line)
        console.print(listed)
    for name, why in summary.get("refused", {}).items():
        console.print(f"{name} was refused: {why}", highlight=False)
    console.print(not_proven(summary), highlight=False)
    console.print()
    for what, path in (
        ("Report", REPORTS / "report.html"),
        ("Table", REPORTS / "results.md"),
        ("Data", SUMMARY),
        ("Data Docs", DATA_DOCS),
        ("Registration", REGISTRATION),
    ):
        if path.exists():
            shown = os.path.relpath(path, reader) if reader else path
            console.print(f"{what + ':':<14}{shown}", highlight=False)
    console.print("For runs and models, run `expunge ui` and open the link that it prints", highlight=False)


def tables(lines: Sequence[Sequence[str]], selected: str | None, width: int) -> list[Table]:
    """Return the result as one table or, on a terminal of fewer columns than it needs, as several; no cell is cut."""
    sizes = [max(map(len, column)) + 3 for column in zip(*lines, strict=True)]  # a column's border and two blanks
    parts: list[list[int]] = [[]]
    for i, size in enumerate(sizes[1:], start=1):
        if parts[-1] and sizes[0] + sum(sizes[j] for j in parts[-1]) + size + 1 > width:
            parts.append([])
        parts[-1].append(i)
    found = []
    for number, part in enumerate(parts):
        table = Table(title=TITLE if number == 0 else None, caption=CAPTION if part is parts[-1] else None)
        for i in (0, *part):
            table.add_column(lines[0][i], justify="left" if i == 0 else "right", no_wrap=True)
        for row in lines[1:]:
            table.add_row(*(row[i] for i in (0, *part)), style="bold" if row[0] == selected else None)
        found.append(table)
    return found
