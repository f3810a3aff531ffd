"""Which segments of a display are lit for each digit, and where they lie in a picture of 12 x 8 pixels."""

from __future__ import annotations

import numpy as np

# Segments a to g: top, upper right, lower right, bottom, lower left, upper left, middle.
PLACES = (
    (slice(1, 2), slice(2, 6)),
    (slice(2, 6), slice(6, 7)),
    (slice(6, 10), slice(6, 7)),
    (slice(10, 11), slice(2, 6)),
    (slice(6, 10), slice(1, 2)),
    (slice(2, 6), slice(1, 2)),
    (slice(5, 6), slice(2, 6)),
)
LIT = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcfgd")
CODES = np.array([[letter in lit for letter in "abcdefg"] for lit in LIT])  # (10, 7) bool


def drawn(digit: int) -> np.ndarray:
    """The picture of a digit, float `(12, 8)`, 1 where a segment is lit."""
    picture = np.zeros((12, 8))
    for lit, place in zip(CODES[digit], PLACES, strict=True):
        picture[place] = lit
    return picture
