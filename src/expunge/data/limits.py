"""Limits for input from outside: which files are images, and how large anything may be.

A faulty or malicious file cannot exhaust the memory.
"""

from __future__ import annotations

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm")  # of images
PIXELS = 100_000_000  # of one image, as its header declares: 300 MB as RGB
TEXT_CHARACTERS = 1_000_000  # in one text
NPZ_BYTES = 32 << 30  # of all arrays of an archive, as it declares them; they are held in memory
LIST_BYTES = 256 << 20  # of a file of ids or subjects
LIST_VALUES = 2_000_000  # ids or subjects in one request
