"""Convert the class labels of a source, which are integers or names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expunge.system.errors import DataError

MAX_CLASSES = 100_000


def index_labels(values: Sequence[object] | np.ndarray, where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the class names and int32 labels `(n,)`. Names are sorted; integers keep their value and name their class.

    Raises DataError for values of other types, for missing labels, and for integers outside 0 to MAX_CLASSES - 1.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"{where}: labels have the shape {array.shape}, but one label per row is needed")
    if array.dtype.kind in "iu":
        bad = np.flatnonzero((array < 0) | (array >= MAX_CLASSES))
        if len(bad):
            raise DataError(f"{where}: row {bad[0]} has label {array[bad[0]]}, which is outside 0 to {MAX_CLASSES - 1}")
        names = tuple(str(i) for i in range(int(array.max(initial=-1)) + 1))
        return names, array.astype(np.int32)
    if array.dtype.kind in "OU" and all(isinstance(v, str) for v in array):
        unique, inverse = np.unique(array.astype(str), return_inverse=True)
        if any("\ud800" <= c <= "\udfff" for name in unique for c in str(name)):
            raise DataError(f"{where}: a class name is not valid Unicode; rename the class")
        return tuple(str(u) for u in unique), inverse.astype(np.int32)
    missing = [i for i, v in enumerate(values) if v is None]
    if missing:
        raise DataError(f"{where}: row {missing[0]} has no label")
    raise DataError(f"{where}: labels have the type {array.dtype}, but integers or names are needed")
