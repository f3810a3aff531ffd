"""A metric: in how many of its seven segments the digit that a model answers differs from the one that it saw."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation import ForgetMetric
from expunge_seven_segments.segments import CODES


def wrong_segments(
    logits: NDArray[np.float64], features: NDArray[np.float64], labels: NDArray[np.int64]
) -> np.floating:
    """Return the mean number of wrong segments over the forgotten rows, 0 to 7.

    A model that still knows a digit scores near 0; one that never saw it takes it for the digit that it most resembles,
    and scores what a retrained model does.
    """
    return (CODES[logits.argmax(1)] != CODES[labels]).sum(1).mean()


METRIC = ForgetMetric(wrong_segments, "segments of the answered digit that are wrong, of 7", "{:.2f}", "retrained")
