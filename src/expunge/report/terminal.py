"""The result of the last run on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from expunge.report.tables import headline, not_proven, reasons, rows
from expunge.system.errors import ManifestError
from expunge.system.files import read_json
from expunge.system.paths import DATA_DOCS, REGISTRATION, REPORTS, SUMMARY


def print_result() -> None:
    """Print the table, the verdict and where to look next. Raises ManifestError when nothing has run yet."""
    if not SUMMARY.is_file():
        raise ManifestError(f"{SUMMARY}: no result yet; run `dvc repro`, or `expunge demo` for a minute's worth")
    summary = read_json(SUMMARY)
    console = Console()
    if not console.is_terminal:  # behind a pipe rich assumes 80 columns and would cut every number
        console = Console(width=140)
    head, *body = rows(summary)
    table = Table(
        title="Every method beside the original and the retrained model",
        caption="KL and agree: with the retrained model on forgotten rows, in nats and as a share",
    )
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in body:
        table.add_row(*row, style="bold" if row[0] == summary["selected"] else None)
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
            console.print(f"{what + ':':<14}{path}", highlight=False)
    console.print("Runs and models: expunge ui, then http://127.0.0.1:5000, Model training", highlight=False)
