"""Panels of a report: Matplotlib drawings as inline SVG that inherit the text colour of the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import Any, Literal

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from expunge.report.summary import CONTROL

INK = "#010203"  # placeholder for the page's text colour, in light and dark mode
# Okabe and Ito's palette, which is readable with every common colour blindness, without yellow, which has too little
# contrast on white.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
GREY = "#8a8a8a"
WIDTH = 4.6  # inches; near the width of a phone, so that text keeps its size there
SHOWN_CLASSES = 20  # largest number of classes in a heatmap

SETTINGS = {
    "svg.fonttype": "none",  # keep text as text: small, selectable, in the page's font
    "text.parse_math": False,  # a class may be called $x$
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.8,
}


@dataclass(frozen=True)
class Panel:
    """A drawing and its title, which is shown above it and read by screen readers."""

    title: str
    svg: str


@dataclass(frozen=True)
class Look:
    """Colour, line style and marker of one candidate in every panel."""

    color: str
    line: str
    marker: str


def looks(candidates: Sequence[str]) -> dict[str, Look]:
    """Return the look of each candidate.

    References have the same look in every report; methods take the next colour, line and marker in the order of the
    table.
    """
    fixed = {
        "original": Look(ORANGE, (0, (1, 1)), "s"),  # type: ignore[arg-type]
        "retrained": Look(INK, "-", "*"),
        CONTROL: Look(GREY, "--", "X"),
    }
    colors, lines, markers = cycle((BLUE, VERMILION, GREEN, PURPLE, SKY)), cycle(("-", "--", "-.")), cycle("o^Dv<>Pph")
    out = {}
    for name in candidates:
        out[name] = fixed[name] if name in fixed else Look(next(colors), next(lines), next(markers))
    return out


def short(name: str, length: int = 18) -> str:
    """Return `name` on one line, cut to `length` characters so that it fits beside an axis."""
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1] + "…"


def panel(
    title: str,
    draw: Callable[[Any], None],
    *,
    x: str = "",
    y: str = "",
    height: float = 2.9,
    grid: Literal["both", "x", "y"] | None = "both",
    legend: int = 0,
) -> Panel:
    """Draw on new axes with labels `x` and `y` and return the panel.

    `legend` is the legend's number of columns, or 0 for no legend. The same drawing gives the same bytes: ids are
    derived from the title, and no date is written.
    """
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": title}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page draws the text with its own font
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        if grid:
            axes.grid(True, axis=grid)
        draw(axes)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if legend:
            lines = -(-len(axes.get_legend_handles_labels()[0]) // legend)
            figure.set_size_inches(WIDTH, height + 0.17 * (lines - 1))  # add room for the legend's lines
            figure.legend(loc="outside upper left", ncols=legend, markerscale=1.3)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator"), None))
    return Panel(title, _inline(out.getvalue(), title))


def standalone(drawn: Panel) -> str:
    """Return the panel as a standalone SVG file, dark on white, for image viewers."""
    style = "background:#fff;color:#20262b;font-family:system-ui,Helvetica,Arial,sans-serif"
    return drawn.svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" style="{style}" ', 1) + "\n"


def heatmap(
    axes: Any, values: Any, rows: Sequence[str], columns: Sequence[str], texts: Sequence[Sequence[str]]
) -> None:
    """Draw cells with their texts.

    `values (rows, columns)` in [-1, 1] shade them blue, or vermilion below 0; cells with NaN stay empty.
    """
    for i, line in enumerate(values):
        for j, value in enumerate(line):
            if value == value:
                color, shade = (VERMILION if value < 0 else BLUE), 0.07 + 0.7 * min(abs(value), 1.0)
                axes.add_patch(Rectangle((j - 0.5, i - 0.5), 0.96, 0.94, facecolor=color, alpha=shade, lw=0))
                axes.text(j, i, texts[i][j], ha="center", va="center", fontsize=8)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def log_scale(axis: Any) -> None:
    """Make an axis logarithmic, with decades as plain numbers and without minor ticks."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _inline(svg: str, title: str) -> str:
    """Return the SVG element alone, without the parts that only a standalone file needs."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", _tag, svg)  # only tags are changed, since a class name may contain anything
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None  # Matplotlib always writes one
    return f'<svg role="img" aria-label="{escape(title, quote=True)}" {box[0]}>{svg[svg.index(">") + 1 :]}'


def _tag(match: re.Match[str]) -> str:
    tag = match[0].replace("xlink:href=", "href=").replace(INK, "currentColor")
    tag = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", tag)  # ids of groups, which nothing refers to
    tag = re.sub(r"font-family: [^;\"]*", "font-family: inherit", tag)
    tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag)
    return re.sub(r"(\.\d\d)\d+", r"\1", tag)
