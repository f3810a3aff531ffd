"""How many processor cores there are to work with."""

from __future__ import annotations

import os


def cores() -> int:
    """The cores that this process may use: those of its CPU affinity where the system has one, else all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
