"""Panels drawn from the numbers of the summary: relearning, probes, damage per class and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from expunge.evaluation.criteria import KEPT
from expunge.report.metrics import lookup
from expunge.report.style import BLUE, INK, SHOWN_CLASSES, VERMILION, Panel, heatmap, log_scale, looks, panel, short
from expunge.report.tables import candidates

Summary = Mapping[str, Any]


def relearning(summary: Summary) -> list[Panel]:
    """Draw the accuracy on forgotten rows while the head is trained on them again, step by step."""
    curves = {name: c for name, b in candidates(summary) if len(c := lookup(b, "relearn.curve") or []) > 1}
    if not curves:
        return []
    target = lookup(summary["references"]["original"], "relearn.target_accuracy")
    steps = [lookup(b, "relearn.steps") for name, b in candidates(summary) if name in curves]
    longest = max(len(c) for c in curves.values()) - 1
    end = longest if None in steps else min(longest, max(5.0, 1.5 * max(steps)))

    def draw(axes: Any) -> None:
        for name, look in looks([name for name, _ in candidates(summary)]).items():
            if name in curves:
                axes.plot(100 * np.array(curves[name], float), color=look.color, ls=look.line, label=name)
        if target is not None:
            axes.axhline(100 * target, color=INK, alpha=0.5, lw=0.8, label="target")
        axes.set(xlim=(0, end), ylim=(-2, 103))

    y = "accuracy on forgotten rows, %"
    return [panel("Relearning the forgotten rows", draw, x="steps of training", y=y, height=3.2, legend=3)]


def probes(summary: Summary) -> list[Panel]:
    """Draw the accuracy of a linear probe and of kNN that look for the forgotten rows in z and in z'."""
    kinds = (("Linear probe", "probe_z"), ("Nearest neighbours (k = 11)", "knn_z"))
    return [p for title, key in kinds if (p := _probe(summary, title, key)) is not None]


def _probe(summary: Summary, title: str, key: str) -> Panel | None:
    blocks = list(candidates(summary))
    values = {
        name: [lookup(block, f"representation.{key}{prime}") for prime in ("", "_prime")] for name, block in blocks
    }
    known = [100 * v for pair in values.values() for v in pair if v is not None]
    if not known:
        return None
    target = values.get("retrained", [None])[0]

    def draw(axes: Any) -> None:
        for side, (fill, label) in enumerate(((VERMILION, "z, of the backbone"), (BLUE, "z', read by the head"))):
            at = [i + 0.19 * (2 * side - 1) for i in range(len(values))]
            widths = [100 * (pair[side] if pair[side] is not None else 0.5) - 50 for pair in values.values()]
            axes.barh(at, widths, 0.34, left=50, color=fill, label=label)
            for y, pair in zip(at, values.values(), strict=True):
                if pair[side] is not None:
                    inside = pair[side] > 0.6
                    at_x, color = (50.7, "white") if inside else (max(100 * pair[side], 50.0) + 0.7, INK)
                    axes.text(at_x, y, f"{100 * pair[side]:.1f}", va="center", fontsize=7.5, color=color)
        if target is not None:
            axes.axvline(100 * target, color=INK, lw=1.2, ls=(0, (2, 2)), label="z of the retrained")
        axes.set_yticks(range(len(values)), [short(name) for name in values])
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_xlim(min(48.0, *known) - 1, 101)
        axes.set_xticks([50, 60, 70, 80, 90, 100])

    height = 1.0 + 0.42 * len(values)
    return panel(title, draw, x="accuracy, % (50 is a guess)", height=height, grid="x", legend=2)


def damage(summary: Summary, classes: Sequence[str]) -> list[Panel]:
    """Draw the recall that each retained class lost against the original, in percentage points."""
    blocks = {name: lookup(block, "per_class.damage") or [] for name, block in candidates(summary)}
    lost = {
        name: values for name, values in blocks.items() if name != "original" and any(v is not None for v in values)
    }
    if not lost:
        return []
    table = np.array([[np.nan if v is None else 100 * v for v in values] for values in lost.values()], float)
    kept = np.flatnonzero(np.isfinite(table).any(axis=0))
    if len(kept) > SHOWN_CLASSES:
        worst = np.nanmax(np.abs(table[:, kept]), axis=0)
        kept = kept[np.sort(np.argsort(-worst, kind="stable")[:SHOWN_CLASSES])]
    title = "Recall lost per class, percentage points of test rows"
    if len(kept) < len(classes) and len(kept) == SHOWN_CLASSES:
        title += f" (the {SHOWN_CLASSES} classes that changed most)"

    shown = table[:, kept].T
    scale = max(float(np.nanmax(np.abs(shown))), 1.0)
    texts = [["" if abs(v) < 0.05 else f"{v:+.1f}" for v in line] for line in shown]

    def draw(axes: Any) -> None:
        heatmap(axes, -shown / scale, [short(classes[int(c)]) for c in kept], [short(name) for name in lost], texts)

    return [panel(title, draw, height=1.1 + 0.24 * len(kept), grid=None)]


def pareto(summary: Summary) -> list[str]:
    """Return the Pareto-optimal methods, in the order of the summary.

    No other method is at least as cheap, as accurate on retained test rows and as near to the retrained model's answers
    on forgotten rows, and better in one of these.
    """
    paths = (("cost.fit_s", 1), ("accuracy.test_retain", -1), ("divergence.forget.kl", 1))
    rows = {
        name: tuple(sign * v for path, sign in paths if (v := lookup(block, path)) is not None)
        for name, block in summary["methods"].items()
    }
    known = {name: values for name, values in rows.items() if len(values) == len(paths)}

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(all(a <= b for a, b in zip(o, mine, strict=True)) and o != mine for o in known.values())

    return [name for name, values in known.items() if not beaten(values)]


def cost(summary: Summary) -> list[Panel]:
    """Draw seconds to fit against the distance of a method's answers to the retrained model's.

    A marker is hollow if utility was not kept, and ringed if the method is Pareto-optimal (`pareto`).
    """
    points = {
        name: (lookup(block, "cost.fit_s"), lookup(block, "divergence.forget.kl"))
        for name, block in summary["methods"].items()
    }
    points = {name: (max(s, 1e-4), kl) for name, (s, kl) in points.items() if s is not None and kl is not None}
    if not points:
        return []
    seconds = [s for s in (lookup(b, "cost.retrain_s") for b in summary["methods"].values()) if s is not None]
    floor = lookup(summary, "references.retrained.divergence.forget.kl")
    front = pareto(summary)

    def draw(axes: Any) -> None:
        shown = looks([name for name, _ in candidates(summary)])
        for name, (s, kl) in points.items():
            color, useful = shown[name].color, lookup(summary["methods"][name], "verdict.utility") == KEPT
            fill = color if useful else "none"
            axes.plot(s, kl, shown[name].marker, mec=color, mfc=fill, ms=9, mew=1.4, label=name, ls="", zorder=3)
            if name in front:
                axes.plot(s, kl, "o", mec=INK, mfc="none", ms=16, mew=0.8, ls="")
        if seconds:
            at, look = float(np.mean(seconds)), shown["retrained"]
            label = "retraining, by definition 0" if floor is None else "retraining, against another seed"
            axes.plot(at, floor or 0.0, look.marker, color=look.color, ms=11, mew=0, label=label, ls="", clip_on=False)
        log_scale(axes.xaxis)
        axes.set_ylim(0, 1.15 * max(kl for _, kl in points.values()) + 0.02)
        axes.margins(x=0.12)

    x, y = "seconds to fit", "KL on forgotten rows, nats"
    title = "Cost, utility and erasure (hollow: utility not kept; ringed: nothing is better in all three)"
    return [panel(title, draw, x=x, y=y, height=3.2, legend=2)]
