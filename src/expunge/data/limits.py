"""The most that is taken in from outside, so that a mistake or an enemy costs a sentence and not a machine."""

from __future__ import annotations

PIXELS = 100_000_000  # of one picture, by the size that its header declares: 300 MB as RGB
TEXT_CHARACTERS = 1_000_000  # of one text
NPZ_BYTES = 32 << 30  # of all arrays of an archive, by the sizes that it declares; they are held in memory
LIST_BYTES = 256 << 20  # of a file of ids or subjects
LIST_VALUES = 2_000_000  # ids or subjects in one request
