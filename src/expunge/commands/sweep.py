"""`expunge sweep`: where erased rows still lie, and, with --apply, out with them."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from expunge.system.errors import DataError
from expunge.system.paths import DATASET, FORGOTTEN

IdFile = Annotated[Path | None, typer.Option(help="File of sample ids (.txt, .csv, .parquet).")]
SubjectFile = Annotated[Path | None, typer.Option(help="File of subjects: all their rows, including test rows.")]


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(sweep)


def sweep(
    ids: IdFile = None,
    subjects: SubjectFile = None,
    apply: Annotated[bool, typer.Option("--apply", help="Erase what is found. Without it nothing is changed.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Find what is left of forgotten rows in data, caches, remotes, MLflow, Prefect, Data Docs and git.

    Without a file, it looks for every row that a promoted version had forgotten. Labels that a request corrected are
    replaced wherever the old ones have come back. Exits with status 2 if something is
    left at the end.
    """
    from expunge import sweep as sweeping
    from expunge.data.corrected import CorrectedLabels
    from expunge.data.selectors import read_values
    from expunge.sweep import labels

    root = Path.cwd()
    rows = read_values(ids, "sample_id") if ids else []
    people = read_values(subjects, "subject") if subjects else []
    if ids is None and subjects is None:
        rows = promoted(root)
    before = labels.sweep_labels(root, apply=apply) if CorrectedLabels.near(root / DATASET) is not None else None
    report = sweeping.sweep(root, rows, subjects=people, apply=apply)
    if before is not None:
        report.add(before)
    if json:
        typer.echo(dumps(report.as_dict(), indent=2))
    else:
        show(report)
    if report.left:
        raise DataError(f"{len(report.left)} residues are left; see the report above")


def promoted(root: Path) -> list[str]:
    """Ids of the rows, among those still here, that promoted versions had forgotten."""
    from expunge.data.dataset import Dataset
    from expunge.ledger.forgotten import ForgottenRows

    ids = Dataset(root / DATASET, erased="allow").sample_ids()
    found = ForgottenRows(root / FORGOTTEN).among(ids)
    return [i for i, is_forgotten in zip(ids, found.tolist(), strict=True) if is_forgotten]


def show(report) -> None:  # type: ignore[no-untyped-def]
    """The report as one table a person can read."""
    parts = report.as_dict()
    table = Table("", "where", "what", "count")
    for title in ("purged" if report.applied else "found", "left"):
        for entry in parts[title]:
            table.add_row(title, entry["where"], entry["what"], f"{entry['count']:,}")
    for entry in parts["not_purgeable"]:
        table.add_row("not purgeable", entry["where"], f"{entry['what']}. To be removed by: {entry['who']}", "")
    console = Console()
    if table.row_count:
        console.print(table)
    if report.applied:
        console.print("Nothing is left." if report.clean else "Something is left.")
    elif parts["found"]:
        console.print("Nothing was changed. Run `expunge sweep --apply` to erase what was found.")
    else:
        console.print("Nothing was found.")
