"""A comparison of two classifiers as tables of text, which the terminal and the HTML pages both show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.data.schema import TEST_RETAIN
from expunge.report.comparison import PARTS, ComparedRows, Interval
from expunge.report.metrics import lookup
from expunge.report.wording import GATES

Block = Mapping[str, Any]
Answers = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class ComparedModels:
    """The two models of a comparison.

    `before` and `after` are their headings. `blocks` are their blocks of the summary and that of the retrained models.
    `parts` are their answers on the same rows, `retrained` the answers of a retrained model. `forgets` says in words
    what is forgotten, if that is known.
    """

    before: str
    after: str
    blocks: tuple[Block | None, Block | None, Block | None]
    parts: Mapping[str, ComparedRows]
    retrained: Answers
    classes: Sequence[str]
    forgets: str | None = None


@dataclass(frozen=True)
class TextTable:
    """A table whose cells are text. `note` is shown below it."""

    title: str
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class ComparisonView:
    """What both renderings show, in this order. `changed` is a sentence that says how many predictions changed."""

    metrics: TextTable
    accuracies: TextTable
    changed: str
    moves: TextTable
    answers: tuple[TextTable, ...]


def comparison_view(compared: ComparedModels) -> ComparisonView:
    """Return the comparison as text. Of forgotten rows it contains only counts and shares."""
    retain = compared.parts.get(TEST_RETAIN)
    moves = () if retain is None else tuple((*_named(compared, a, b), f"{n:,}") for a, b, n in retain.moves())
    return ComparisonView(
        _metrics(compared),
        TextTable(
            "Accuracy on the same rows",
            ("", "rows", compared.before, compared.after, "difference", "changed", "lost", "gained"),
            tuple(_accuracy(of_whom(compared, part), p) for part, p in compared.parts.items()),
            "Lost rows were right before and are wrong now; gained rows are the reverse. Intervals are over rows: "
            "95 %, and 90 % for the difference.",
        ),
        "" if retain is None else _how_many(retain),
        TextTable("Changed predictions on retained test rows", (compared.before, compared.after, "rows"), moves),
        tuple(_answers(compared, part, p) for part, p in compared.parts.items() if part != TEST_RETAIN),
    )


def _metrics(compared: ComparedModels) -> TextTable:
    """Return a table of the metrics of the verdict that at least one block has.

    It has a column for retrained models if there are any.
    """
    shown = compared.blocks if compared.blocks[2] is not None else compared.blocks[:2]
    rows = [(m.name, *(_measure(block, m.path) for block in shown)) for m in GATES]
    return TextTable(
        "Metrics, as evaluated when each model was made",
        ("", compared.before, compared.after, "retrained")[: 1 + len(shown)],
        tuple(row for row in rows if any(cell != "–" for cell in row[1:])),
        "Each is on the rows of its own request. The interval in brackets is the one that the verdict used.",
    )


def of_whom(compared: ComparedModels, part: str) -> str:
    """Return the name of a part and, if known, what is forgotten."""
    return PARTS[part] if part == TEST_RETAIN or compared.forgets is None else f"{PARTS[part]}: {compared.forgets}"


def _how_many(p: ComparedRows) -> str:
    changed = int(p.changed.sum())
    return f"{changed:,} of {len(p.labels):,} changed." if changed else f"None of {len(p.labels):,} changed."


def _measure(block: Block | None, path: str) -> str:
    """Return a value of the summary with the interval that the verdict used; a dash if there is no value."""
    value = lookup(block, path)
    if value is None:
        return "–"
    interval = ((block or {}).get("intervals") or {}).get(path)
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _share(i: Interval) -> str:
    return "–" if i.value is None else f"{i.value:.1%} [{i.low:.1%}, {i.high:.1%}]"


def _accuracy(name: str, p: ComparedRows) -> tuple[str, ...]:
    gap = p.difference()
    difference = "–" if gap is None else f"{gap.value:+.1%} [{gap.low:+.1%}, {gap.high:+.1%}]"
    counts = (int(p.changed.sum()), p.lost, p.gained)
    return (name, f"{len(p.labels):,}", *map(_share, p.accuracies()), difference, *(f"{n:,}" for n in counts))


def _named(compared: ComparedModels, *classes: int) -> tuple[str, ...]:
    return tuple(compared.classes[c] for c in classes)


def _answers(compared: ComparedModels, part: str, p: ComparedRows) -> TextTable:
    """Return the predictions of each classifier on the rows of a part as shares.

    Classes that no classifier predicts are left out.
    """
    columns = {compared.before: p.before, compared.after: p.after}
    if part in compared.retrained:
        columns["retrained"] = compared.retrained[part]
    named = np.unique(np.concatenate(list(columns.values())))
    body = tuple(
        (compared.classes[c], *(f"{(predicted == c).mean():.1%}" for predicted in columns.values())) for c in named
    )
    return TextTable(
        f"Predictions on {of_whom(compared, part)}", ("predicted", *columns), body, f"Share of {len(p.labels):,} rows."
    )
