"""A review on the terminal: champion and challenger in two columns, then the predictions that change."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from expunge.promotion.review import Review
from expunge.report.comparison_view import TextTable, comparison_view


def console() -> Console:
    """Return a console that prints text as it is, wide enough for the tables also in a pipe."""
    # Class names and reasons must not be parsed as markup. In a pipe rich assumes 80 columns, too few for the tables.
    out = Console(highlight=False, markup=False)
    return out if out.is_terminal else Console(width=170, highlight=False, markup=False)


def show(review: Review, out: Console) -> None:
    """Print the whole review."""
    view = comparison_view(review.compared_models())
    for finding in review.findings:
        out.print(f"Attention: {finding}", style="bold red")
    for table in (review.versions(), view.metrics, view.accuracies):
        out.print(as_rich(table))
    if view.moves.body:
        out.print(f"\n{view.moves.title}: {view.changed}", style="bold")
        out.print(as_rich(view.moves, titled=False))
    for table in view.answers:
        out.print(f"\n{table.title}", style="bold")
        out.print(as_rich(table, titled=False))
    out.print()
    if review.failed:
        out.print(f"Version {review.challenger.version} does not pass the gates:", style="bold red")
        for failed in review.failed:
            out.print(f"- {failed}")
    else:
        out.print(f"Version {review.challenger.version} passes the gates.", style="bold green")


def as_rich(table: TextTable, titled: bool = True) -> Table:
    """Convert a table to rich's."""
    shown = Table(*table.head, title=table.title if titled else None, caption=table.note or None)
    for row in table.body:
        shown.add_row(*row)
    return shown
