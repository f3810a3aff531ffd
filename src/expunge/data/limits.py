"""Which files are images, by their names. How large anything may be stands in `expunge.system.limits`."""

from __future__ import annotations

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm")  # of images
