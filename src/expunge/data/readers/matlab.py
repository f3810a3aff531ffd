"""Read arrays from MATLAB files (version 5, as of SVHN and Flowers-102) with scipy, which executes no code in them."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from expunge.system.errors import DataError


def read_mat(file: Path, names: tuple[str, ...]) -> list[np.ndarray]:
    """Return the integer arrays `names` of `file`. Raises DataError for a missing file or array, and a damaged file."""
    try:
        found = loadmat(file, variable_names=names)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except (OSError, EOFError, ValueError, TypeError, NotImplementedError, MatReadError, zlib.error) as e:
        raise DataError(f"{file}: is not a complete MATLAB file ({e}); delete it and fetch it again") from e
    arrays = []
    for name in names:
        array = found.get(name)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "ui":
            raise DataError(f"{file}: holds no integer array {name!r}; delete it and fetch it again")
        arrays.append(array)
    return arrays
