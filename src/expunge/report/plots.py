"""Panels drawn from outputs per row: predictions of the forgotten rows, histograms, ROC curves, 2-D views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import roc_curve
from threadpoolctl import threadpool_limits

from expunge.evaluation.divergence import log_softmax
from expunge.evaluation.membership import loss
from expunge.report.evidence import Evidence
from expunge.report.style import (
    BLUE,
    GREEN,
    INK,
    SHOWN_CLASSES,
    VERMILION,
    Panel,
    heatmap,
    log_scale,
    looks,
    panel,
    short,
)

GROUPS = {"forgotten": (VERMILION, "-"), "unseen": (BLUE, "--"), "retained": (GREEN, "-.")}
FLOOR = 1e-4  # nats; smaller losses are drawn at this value
CONFIDENCE_BINS = np.linspace(0, 1, 26)
LOSS_BINS = np.geomspace(FLOOR, 30, 28)


def confusion_shift(e: Evidence) -> list[Panel]:
    """Draw the share of the forgotten rows that each model predicts as each class, beside their true labels."""
    rows, n = e.groups["forgotten"], len(e.classes)
    if not len(rows):
        return []
    columns = {"true label": np.bincount(e.labels[rows], minlength=n)}
    columns |= {name: np.bincount(logits[rows].argmax(axis=1), minlength=n) for name, logits in e.logits.items()}
    share = np.stack(list(columns.values()), axis=1) / len(rows)
    names = [short(c) for c in e.classes]
    if n > SHOWN_CLASSES:
        top = np.sort(np.argsort(-share.max(axis=1), kind="stable")[: SHOWN_CLASSES - 1])
        share = np.vstack([share[top], share[np.setdiff1d(np.arange(n), top)].sum(axis=0)])
        names = [*(names[c] for c in top), f"{n - len(top)} others"]

    texts = [[f"{100 * v:.0f}" if v >= 0.005 else "" for v in line] for line in share]

    def draw(axes: Any) -> None:
        heatmap(axes, share, names, [short(column) for column in columns], texts)

    height = 1.1 + 0.24 * len(names)
    return [panel("Forgotten rows by predicted class, % of rows", draw, height=height, grid=None)]


def histograms(e: Evidence, models: Sequence[str]) -> list[Panel]:
    """Draw for each model the confidence (largest probability) and the loss of the true label, by group of rows."""
    values = {m: confidence_and_loss(e.logits[m], e.labels) for m in models}
    tallest = max(
        bin_shares(values[m][1][e.groups[g]], LOSS_BINS).max() for m in models for g in GROUPS if len(e.groups[g])
    )
    out = []
    for model in models:
        confidence, losses = values[model]
        out.append(_histogram(e, f"{model}: confidence", confidence, CONFIDENCE_BINS, "confidence", 1.0))
        label = f"loss, nats ({FLOOR:g} or less at the left edge)"
        out.append(_histogram(e, f"{model}: loss", losses, LOSS_BINS, label, tallest))
    return out


def confidence_and_loss(logits: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the largest probability and the cross-entropy of each row, both `(n,)`."""
    return np.exp(log_softmax(logits).max(axis=1)), loss(logits, labels)


def bin_shares(values: NDArray[Any], bins: NDArray[Any]) -> NDArray[Any]:
    """Return the share of the values in each bin; values outside count in the first or the last one."""
    counts, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins)
    return np.asarray(counts / len(values))


def _histogram(e: Evidence, title: str, values: NDArray[Any], bins: NDArray[Any], x: str, top: float) -> Panel:
    def draw(axes: Any) -> None:
        for group, (color, line) in GROUPS.items():
            rows = e.groups[group]
            if len(rows):
                share = bin_shares(values[rows], bins)
                axes.stairs(share, bins, color=color, ls=line, lw=1.5, label=group)
                axes.stairs(share, bins, color=color, alpha=0.12, fill=True)
        if bins is LOSS_BINS:
            log_scale(axes.xaxis)
        axes.set_ylim(0, 1.04 * top)

    return panel(title, draw, x=x, y="share of rows", height=2.3, legend=3)


def attack_curves(e: Evidence) -> list[Panel]:
    """Draw the ROC curves of the loss attack with logarithmic axes.

    One panel shows forgotten against unseen rows, and another shows retained against other test rows.
    """
    sides = [
        ("Forgotten against unseen rows", "forgotten", "unseen"),
        ("Retained against retained test rows", "retained", "retained test"),
    ]
    return [_roc(e, title, a, b) for title, a, b in sides if len(e.groups[a]) and len(e.groups[b])]


def _roc(e: Evidence, title: str, members: str, others: str) -> Panel:
    rows = np.concatenate([e.groups[members], e.groups[others]])
    truth = np.repeat([1, 0], [len(e.groups[members]), len(e.groups[others])])
    low = 1 / max(len(e.groups[others]), 100)

    def draw(axes: Any) -> None:
        for name, look in looks(list(e.logits)).items():
            grid, reached = roc_points(truth, -loss(e.logits[name][rows], e.labels[rows]), low)
            axes.plot(grid, np.maximum(reached, low / 2), color=look.color, ls=look.line, label=name)
        axes.plot([low, 1], [low, 1], color=INK, alpha=0.4, lw=0.8, label="guessing")
        log_scale(axes.xaxis)
        log_scale(axes.yaxis)
        axes.set(xlim=(low, 1), ylim=(low / 2, 1.1))

    x, y = "false-positive rate", "true-positive rate"
    return panel(title, draw, x=x, y=y, height=3.3, legend=3)


def roc_points(
    truth: NDArray[np.int64], score: NDArray[Any], low: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return at most 400 false-positive rates from `low` to 1, and the true-positive rate at each.

    Rows of equal score are called in random order, so the curve is a straight line between the rates before and after
    them: without a difference in score it is that of guessing.
    """
    fpr, tpr, _ = roc_curve(truth, score)
    grid = np.unique(np.concatenate([np.geomspace(low, 1, 200), fpr[fpr >= low]]))
    grid = grid[np.linspace(0, len(grid) - 1, min(len(grid), 400)).astype(int)]
    return grid, np.interp(grid, fpr, tpr)


def views(e: Evidence) -> list[Panel]:
    """Draw each set of features in two dimensions, by PCA and by t-SNE (of at most 50 principal components, seed 0)."""
    out = []
    with threadpool_limits(1):  # a fixed order of summation, so that equal features give equal plots
        for title, features in alike(e.views):
            x = np.asarray(features, np.float64)
            if len(x) < 12 or not np.ptp(x, axis=0).any():
                continue
            linear, explained = principal_components(x)
            a, b = (f"PC {i + 1} ({share:.0%} of variance)" for i, share in enumerate(explained[:2]))
            out.append(_scatter(f"{title}, PCA", linear[:, :2], e.view_groups, a, b))
            out.append(_scatter(f"{title}, t-SNE", _tsne(linear), e.view_groups, "t-SNE 1", "t-SNE 2"))
    return out


def alike(views: Mapping[str, NDArray[Any]]) -> list[tuple[str, NDArray[Any]]]:
    """Merge views with equal features into one whose title names all of them.

    A method that only replaces the head leaves the features equal.
    """
    found: list[tuple[str, NDArray[Any]]] = []
    for title, features in views.items():
        same = next((i for i, (_, seen) in enumerate(found) if np.array_equal(seen, features)), None)
        if same is None:
            found.append((title, features))
        else:
            found[same] = (f"{found[same][0]} = {title}", features)
    return found


def principal_components(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return at most 50 principal components of `x (k, d)` and their shares of the variance, padded to two columns."""
    pca = PCA(min(50, *x.shape), svd_solver="randomized", random_state=0)
    points = pca.fit_transform(x)
    missing = max(0, 2 - points.shape[1])
    return np.pad(points, ((0, 0), (0, missing))), np.pad(pca.explained_variance_ratio_, (0, missing))


def _tsne(x: NDArray[Any]) -> NDArray[Any]:
    perplexity = min(30.0, (len(x) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, init="pca", max_iter=500, random_state=0, n_jobs=1)
    return np.asarray(model.fit_transform(x))


def _scatter(title: str, points: NDArray[Any], groups: NDArray[Any], x: str, y: str) -> Panel:
    styles = {"retained": (INK, "o", 7, 0.3), "unseen": (BLUE, "^", 17, 0.9), "forgotten": (VERMILION, "o", 12, 0.7)}

    def draw(axes: Any) -> None:
        for group, (color, marker, size, alpha) in styles.items():
            mine = points[groups == group]
            if len(mine):
                axes.scatter(*mine.T, s=size, marker=marker, color=color, alpha=alpha, lw=0, label=group)
        axes.set_xticks([])
        axes.set_yticks([])

    return panel(title, draw, x=x, y=y, height=3.1, grid=None, legend=3)
