"""A metric provided by another package: one number computed from a model's outputs on the forgotten rows."""

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
    """A metric of another package, found by its entry point and measured where `evaluate.metrics` names it.

    The package declares it in the entry-point group `expunge.metrics`. `measure(logits, features, labels)` takes the
    n >= 1 forgotten training rows: logits `(n, C)` and the head's inputs `(n, d)`, both float64, and labels `(n,)`
    int64. The arrays are read-only. It returns a finite number that does not depend on the order of rows. Reports show
    the value beside those of the original and the retrained models; the verdict does not use it.
    `name`: the metric's name in words, with its unit. `form`: the format of the value. `target`: where a good value
    lies, in a word or two; "retrained" is the retrained models' value.
    """

    measure: Measure
    name: str
    form: str = "{:.3f}"
    target: str = "retrained"

    def of(self, logits: NDArray[Any], features: NDArray[Any], labels: NDArray[Any]) -> float:
        """Value of the metric for one model. Raises ValueError if it is not a finite number."""
        scores, read, classes = np.array(logits, np.float64), np.array(features, np.float64), np.array(labels, np.int64)
        for array in (scores, read, classes):
            array.setflags(write=False)
        value: Any = self.measure(scores, read, classes)
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise ValueError(f"gave a {type(value).__name__}, not a number")
        if not np.isfinite(value):
            raise ValueError(f"gave {value}, which is not finite")
        return float(value)
