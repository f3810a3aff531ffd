"""A metric that another package brings along: one number of what a model says about the forgotten rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# `(logits, features, labels) -> number`; see ForgetMetric.
Measure = Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]], float]


@dataclass(frozen=True)
class ForgetMetric:
    """Declared in the group `expunge.metrics`, and measured where `evaluate.metrics` of params.yaml names it.

    `measure(logits, features, labels)` takes the n >= 1 forgotten training rows: logits `(n, C)`, what the head reads
    `(n, d)`, both float64, and labels `(n,)` int64. It returns a finite number that the order of rows does not change,
    and leaves the arrays as they are; they are read-only. It is shown beside the original's and the retrained models'
    value and decides nothing: no verdict is made of it.
    `name`: in words, with its unit. `form`: how the value is printed. `target`: where a good value lies, in a word or
    two; "retrained" is the retrained models' value.
    """

    measure: Measure
    name: str
    form: str = "{:.3f}"
    target: str = "retrained"

    def of(self, logits: NDArray[Any], features: NDArray[Any], labels: NDArray[Any]) -> float:
        """Its value for one model. Raises ValueError where that is no finite number."""
        scores, read, classes = np.array(logits, np.float64), np.array(features, np.float64), np.array(labels, np.int64)
        for array in (scores, read, classes):
            array.setflags(write=False)
        value: Any = self.measure(scores, read, classes)
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise ValueError(f"gave a {type(value).__name__}, not a number")
        if not np.isfinite(value):
            raise ValueError(f"gave {value}, which is not finite")
        return float(value)
