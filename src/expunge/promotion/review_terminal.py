"""A review on the terminal: champion and challenger in two columns, then what changes for whom."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from expunge.data.schema import TEST_RETAIN
from expunge.promotion.gates import short
from expunge.promotion.review import Review
from expunge.report.comparison import PARTS
from expunge.report.comparison_page import measure, share
from expunge.report.wording import GATES


def console() -> Console:
    # Names of classes and reasons are text, not markup. Behind a pipe rich assumes 80 columns.
    out = Console(highlight=False, markup=False)
    return out if out.is_terminal else Console(width=170, highlight=False, markup=False)


def show(review: Review, out: Console) -> None:
    """Print the whole review."""
    for finding in review.findings:
        out.print(f"Attention: {finding}", style="bold red")
    before, after = review.headings()
    out.print(versions(review, before, after))
    out.print(evaluated(review, before, after))
    out.print(same_rows(review, before, after))
    for part, table in changes(review, before, after):
        out.print(f"\n{part}", style="bold")
        out.print(table)
    out.print()
    if review.failed:
        out.print(f"Version {review.challenger.version} does not pass the gates:", style="bold red")
        for failed in review.failed:
            out.print(f"- {failed}")
    else:
        out.print(f"Version {review.challenger.version} passes the gates.", style="bold green")


def versions(review: Review, before: str, after: str) -> Table:
    table = Table("", before, after, title=review.challenger.name)
    for label, tag in (
        ("method", "method"),
        ("shown", "claims"),
        ("utility", "utility"),
        ("gates against it", "failed_gates"),
    ):
        cells = ("–" if v is None else v.tags.get(tag, "–") for v in (review.champion, review.challenger))
        table.add_row(label, *cells)
    requests = ("–" if v is None else short(v.tags.get("request", "–")) for v in (review.champion, review.challenger))
    table.add_row("request", *requests)
    table.add_row("forgets", *(what or "–" for what in review.forgets))
    return table


def evaluated(review: Review, before: str, after: str) -> Table:
    """The numbers of the verdict, each with its interval, as they were when the version was registered."""
    table = Table(
        "evaluated when registered",
        before,
        after,
        "retrained",
        caption="each on the rows of its own request; in brackets: the interval that the verdict used",
    )
    for metric in GATES:
        cells = [measure(block, metric.path) for block in review.evaluations]
        if any(cell != "–" for cell in cells):
            table.add_row(metric.name, *cells)
    return table


def same_rows(review: Review, before: str, after: str) -> Table:
    table = Table(
        "accuracy, asked now on the same rows",
        "rows",
        "original" if review.champion is None else "champion",
        "challenger",
        "difference",
        "changed",
        "lost",
        "gained",
        caption="lost: right before, wrong now; gained: the reverse. Intervals over rows: 95 %, of the difference 90 %",
    )
    for part, p in review.parts.items():
        gap = p.difference()
        table.add_row(
            of_whom(review, part),
            f"{len(p.labels):,}",
            *(share(i) for i in p.accuracies()),
            "–" if gap is None else f"{gap.value:+.1%} [{gap.low:+.1%}, {gap.high:+.1%}]",
            f"{p.changed.sum():,}",
            f"{p.lost:,}",
            f"{p.gained:,}",
        )
    return table


def changes(review: Review, before: str, after: str) -> list[tuple[str, Table]]:
    """Retained test rows: the most frequent changes. Forgotten rows: what each says of them now."""
    out = []
    for part, p in review.parts.items():
        if part == "test_retain":
            table = Table(before, after, "rows")
            for a, b, n in p.moves():
                table.add_row(review.classes[a], review.classes[b], f"{n:,}")
            if p.changed.any():
                out.append(("Changed predictions on retained test rows, the most frequent", table))
        else:
            columns = {before: p.before, after: p.after}
            if part in review.retrained:
                columns["retrained"] = review.retrained[part]
            table = Table("predicted", *columns)
            for c in np.unique(np.concatenate(list(columns.values()))):
                table.add_row(review.classes[c], *(f"{(said == c).mean():.1%}" for said in columns.values()))
            out.append((f"What they say of {of_whom(review, part)}", table))
    return out


def of_whom(review: Review, part: str) -> str:
    """A part by name; what is forgotten is what the challenger forgets."""
    what = review.forgets[1]
    return PARTS[part] if part == TEST_RETAIN or what is None else f"{PARTS[part]}: {what}"
