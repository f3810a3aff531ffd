"""Keep the memory of a model's freed activations for reuse."""

from __future__ import annotations

import ctypes

# mallopt(3) of glibc.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST = 2**31 - 1  # bytes; the largest number mallopt takes


def keep_freed() -> None:
    """Have glibc keep freed memory for this process. Other C libraries are left unchanged.

    A forward pass allocates tens of MB per layer and frees them. By default glibc returns them to the system, which
    zeroes them page by page when they are allocated again. That takes more than half of the time of EfficientNet-Lite0
    on a CPU, and two processes contend for pages. In exchange, a process keeps the memory that it needed at its peak.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MOST)
        mallopt(M_TRIM_THRESHOLD, MOST)
