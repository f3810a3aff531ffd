"""Two classifiers side by side as HTML: metrics with intervals, changed predictions with pictures, forgotten rows.

Pictures are of retained test rows only. Of forgotten rows nothing is shown but counts: a page outlives a deletion.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.data.dataset import Dataset
from expunge.data.schema import TEST_RETAIN
from expunge.report.comparison import PARTS, Interval, Part
from expunge.report.html import environment
from expunge.report.metrics import lookup
from expunge.report.wording import GATES

Block = Mapping[str, Any]
Answers = Mapping[str, NDArray[np.int64]]
# Changed rows that are shown: first what was right and is wrong, then the reverse, then from one mistake to another.
LOST, GAINED, OTHER = 12, 6, 6
PIXELS = 96  # the longer side of a picture is at most so long
LETTERS = 160  # and a text so many letters


@dataclass(frozen=True)
class Sides:
    """What stands side by side. `before` and `after` are headings, `blocks` their blocks of the summary and the
    retrained models', `parts` what they say of the same rows, `retrained` what a retrained model says of them."""

    before: str
    after: str
    blocks: tuple[Block | None, Block | None, Block | None]
    parts: Mapping[str, Part]
    retrained: Answers
    classes: Sequence[str]


def section(sides: Sides, dataset: Dataset) -> str:
    """The comparison as a piece of HTML, to stand inside a page."""
    from markupsafe import Markup

    return Markup(environment().get_template("sides.html.jinja").render(**_content(sides, dataset)))


def _content(sides: Sides, dataset: Dataset) -> dict[str, Any]:
    measured = [(m.name, [measure(block, m.path) for block in sides.blocks]) for m in GATES]
    kept = sides.parts.get(TEST_RETAIN)
    return {
        "before": sides.before,
        "after": sides.after,
        "has_retrained": sides.blocks[2] is not None,
        "metrics": [(label, cells) for label, cells in measured if any(cell != "–" for cell in cells)],
        "accuracies": [_accuracy(part, p) for part, p in sides.parts.items()],
        "changed": 0 if kept is None else int(kept.changed.sum()),
        "rows": 0 if kept is None else len(kept.labels),
        "moves": [] if kept is None else [(*_named(sides, a, b), f"{n:,}") for a, b, n in kept.moves()],
        "pictures": [] if kept is None else _pictures(sides, kept, dataset),
        "answers": [_answers(sides, part, p) for part, p in sides.parts.items() if part != TEST_RETAIN],
    }


def measure(block: Block | None, path: str) -> str:
    """A value of the summary with the interval that the verdict used."""
    value = lookup(block, path)
    if value is None:
        return "–"
    interval = ((block or {}).get("intervals") or {}).get(path)
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def share(i: Interval) -> str:
    return "–" if i.value is None else f"{i.value:.1%} [{i.low:.1%}, {i.high:.1%}]"


def _accuracy(part: str, p: Part) -> dict[str, str]:
    gap = p.difference()
    before, after = p.accuracies()
    return {
        "part": PARTS[part],
        "rows": f"{len(p.labels):,}",
        "before": share(before),
        "after": share(after),
        "difference": "–" if gap is None else f"{gap.value:+.1%} [{gap.low:+.1%}, {gap.high:+.1%}]",
        "changed": f"{int(p.changed.sum()):,}",
        "lost": f"{p.lost:,}",
        "gained": f"{p.gained:,}",
    }


def _named(sides: Sides, *classes: int) -> tuple[str, ...]:
    return tuple(sides.classes[c] for c in classes)


def _answers(sides: Sides, part: str, p: Part) -> dict[str, Any]:
    """What each predicts for the rows of a part, as shares; classes that nobody names are left out."""
    columns = {sides.before: p.before, sides.after: p.after}
    if part in sides.retrained:
        columns["retrained"] = sides.retrained[part]
    named = np.unique(np.concatenate(list(columns.values())))
    body = [(sides.classes[c], [f"{(said == c).mean():.1%}" for said in columns.values()]) for c in named]
    return {"part": PARTS[part], "rows": f"{len(p.labels):,}", "head": list(columns), "body": body}


def chosen(p: Part) -> NDArray[np.int64]:
    """Positions in the part of the changed rows that are shown."""
    was, now = p.before == p.labels, p.after == p.labels
    kinds = ((was & ~now, LOST), (~was & now, GAINED), (p.changed & ~was & ~now, OTHER))
    return np.concatenate([np.flatnonzero(kind)[:most] for kind, most in kinds])


def _pictures(sides: Sides, p: Part, dataset: Dataset) -> list[dict[str, str]]:
    shown = chosen(p)
    if not len(shown):
        return []
    out = []
    for at, seen in zip(shown, dataset.inputs(p.rows[shown]), strict=True):
        label, before, after = _named(sides, int(p.labels[at]), int(p.before[at]), int(p.after[at]))
        words = {"label": label, "before": before, "after": after}
        if isinstance(seen, str):
            words["text"] = seen if len(seen) <= LETTERS else seen[: LETTERS - 1] + "…"
        else:
            words["picture"] = thumbnail(seen)
        out.append(words)
    return out


def thumbnail(image: NDArray[np.uint8]) -> str:
    """uint8 `(h, w, c)` as a PNG inside an address, so that the page needs no other file."""
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image[..., :3])
    picture.thumbnail((PIXELS, PIXELS))
    out = io.BytesIO()
    picture.save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
