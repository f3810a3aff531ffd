"""Memory that a model's activations leave is kept for the next ones."""

from __future__ import annotations

import ctypes

# mallopt(3) of glibc.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST = 2**31 - 1  # bytes; the largest number mallopt takes


def keep_freed() -> None:
    """Have glibc keep freed memory for this process. Another C library is left as it is.

    A forward pass asks for tens of MB per layer and gives them back. By default glibc returns them to the system, which
    fills them with zeros page by page when they are asked for again: more than half of the time of EfficientNet-Lite0
    on a CPU, and two processes wait for each other's pages. A process then holds what it needed at its peak.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MOST)
        mallopt(M_TRIM_THRESHOLD, MOST)
