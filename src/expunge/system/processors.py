"""The number of processor cores that a process may use."""

from __future__ import annotations

import os


def cores() -> int:
    """Return the number of cores in this process's CPU affinity, or of all cores where the system has no affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
