"""A comparison of two classifiers as HTML: its tables, and images of rows whose prediction changed.

Images are of retained test rows only. Forgotten rows appear only as counts and shares, because a page may outlive a
deletion.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from expunge.data.dataset import Dataset
from expunge.data.schema import TEST_RETAIN
from expunge.report.comparison import ComparedRows
from expunge.report.comparison_view import ComparedModels, comparison_view
from expunge.report.templates import environment

# Largest numbers of changed rows that are shown: from right to wrong, from wrong to right, from wrong to wrong.
LOST, GAINED, OTHER = 12, 6, 6
PIXELS = 96  # largest length of the longer side of an image
LETTERS = 160  # largest number of characters of a text


def section(compared: ComparedModels, dataset: Dataset) -> str:
    """Return the comparison as a piece of HTML for a page."""
    retain = compared.parts.get(TEST_RETAIN)
    pictures = [] if retain is None else _pictures(compared, retain, dataset)
    template = environment().get_template("comparison.html.jinja")
    return Markup(template.render(view=comparison_view(compared), pictures=pictures))


def chosen(p: ComparedRows) -> NDArray[np.int64]:
    """Return the positions in the part of the changed rows that are shown."""
    was, now = p.before == p.labels, p.after == p.labels
    kinds = ((was & ~now, LOST), (~was & now, GAINED), (p.changed & ~was & ~now, OTHER))
    return np.concatenate([np.flatnonzero(kind)[:most] for kind, most in kinds])


def _pictures(compared: ComparedModels, p: ComparedRows, dataset: Dataset) -> list[dict[str, str]]:
    shown = chosen(p)
    if not len(shown):
        return []
    out = []
    for at, seen in zip(shown, dataset.inputs(p.rows[shown]), strict=True):
        label, before, after = (compared.classes[int(c[at])] for c in (p.labels, p.before, p.after))
        words = {"label": label, "before": before, "after": after}
        if isinstance(seen, str):
            words["text"] = seen if len(seen) <= LETTERS else seen[: LETTERS - 1] + "…"
        else:
            words["picture"] = thumbnail(seen)
        out.append(words)
    return out


def thumbnail(image: NDArray[np.uint8]) -> str:
    """Return a uint8 image `(h, w, c)` as a data URL of a PNG, so that the page needs no other file."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image[..., :3])
    picture.thumbnail((PIXELS, PIXELS))
    out = io.BytesIO()
    picture.save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
