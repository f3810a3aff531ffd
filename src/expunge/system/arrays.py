"""Arrays in files that are mapped for writing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np


def new_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Create an .npy file and return its array, mapped for writing.

    All its space is taken at once. Otherwise a full disk is met while the mapped memory is written, and the system
    kills the process (SIGBUS) instead of raising an error. Raises OSError.
    """
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # macOS has no such call
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
