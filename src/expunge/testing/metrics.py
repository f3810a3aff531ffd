"""Contract test for metrics of other packages."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.forget_metric import ForgetMetric
from expunge.testing.promises import other_chance, promised

Rows = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]
TOLERANCE = 1e-9  # relative; allows for rounding when rows are summed in another order


def check_metric(metric: ForgetMetric) -> dict[str, float]:
    """Measure `metric` on typical and extreme rows, and return its values by case.

    Raises AssertionError if a value is not a finite number, if the metric writes to its arrays, if the order of rows or
    the state of a global generator changes the value, or if the name, target or format for reports is unusable.
    """
    assert isinstance(metric, ForgetMetric), f"{type(metric).__name__} is not an expunge.evaluation.ForgetMetric"
    for name in ("name", "target"):
        text = getattr(metric, name)
        assert isinstance(text, str) and text.strip(), f"{name} is {text!r}: write it in words"
    with promised(f"form {metric.form!r} cannot print the value 0.25"):
        shown = metric.form.format(0.25)
    assert shown != metric.form, f"form {metric.form!r} leaves the value out"
    found = {}
    for case, rows in cases().items():
        with promised(f"{case}: the metric fails"):
            with other_chance(1):
                found[case] = metric.of(*rows)
            with other_chance(2):
                again = metric.of(*rows)
        assert again == found[case], f"{case}: {found[case]}, then {again} for the same rows: draw from a fixed seed"
        order = np.random.default_rng(0).permutation(len(rows[2]))
        with promised(f"{case}, rows in another order: the metric fails"):
            moved = metric.of(*(part[order] for part in rows))
        same = abs(moved - found[case]) <= TOLERANCE * max(1.0, abs(found[case]))
        assert same, f"{case}: {found[case]}, but {moved} for the same rows in another order"
    return found


def cases() -> dict[str, Rows]:
    """Typical and extreme rows for a metric, by a description of the case."""
    rng = np.random.default_rng(0)

    def rows(n: int, classes: int, d: int) -> Rows:
        return rng.normal(size=(n, classes)), rng.normal(size=(n, d)), rng.integers(0, classes, n)

    logits, features, labels = rows(50, 4, 6)
    return {
        "50 rows of 4 classes": (logits, features, labels),
        "200 rows of 10 classes": rows(200, 10, 3),
        "one row": rows(1, 4, 6),
        "rows of one class": (logits, features, np.full(50, 2)),
        "logits of 10,000 and -10,000": (np.where(logits > 0, 1e4, -1e4), features, labels),
        "equal logits": (np.zeros_like(logits), features, labels),
        "features that are all zero": (logits, np.zeros_like(features), labels),
    }
