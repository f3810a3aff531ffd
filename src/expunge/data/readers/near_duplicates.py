"""Which owners of pictures belong together because pictures of theirs are nearly alike."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

BLOCK = 4  # pixels; pictures are compared as means of blocks
ALIKE = 4.0  # grey levels of 255: root mean square difference of block means below which two pictures are one
ROWS = 512  # pictures compared at a time


def joined(
    images: np.ndarray, owners: np.ndarray, sets: np.ndarray, linked: Iterable[tuple[int, int]] = ()
) -> np.ndarray:
    """int64 `(n,)`: for each picture the smallest owner among those that belong together with its own.

    `images` uint8 `(n, h, w, c)`, h and w multiples of 4; `owners` int `(n,)`; pictures are compared within a value of
    `sets` `(n,)`. Owners belong together when pictures of theirs differ by less than ALIKE, when `linked` says so, or
    by a chain of both. Sums of blocks are whole numbers below 2^53, so the answer does not depend on the machine.
    """
    parent = {int(o): int(o) for o in np.unique(owners)}

    def root(owner: int) -> int:
        while parent[owner] != owner:
            parent[owner] = parent[parent[owner]]
            owner = parent[owner]
        return owner

    pairs = [(a, b) for a, b in linked if a in parent and b in parent]
    for value in np.unique(sets):
        rows = np.flatnonzero(sets == value)
        pairs += [(int(owners[rows[i]]), int(owners[rows[j]])) for i, j in _alike(images[rows])]
    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return np.array([root(int(o)) for o in owners], dtype=np.int64)


def _alike(images: np.ndarray) -> list[tuple[int, int]]:
    """Pairs i < j of pictures whose block means differ by less than ALIKE."""
    n, height, width, channels = images.shape
    blocks = images.reshape(n, height // BLOCK, BLOCK, width // BLOCK, BLOCK, channels)
    sums = blocks.sum(axis=(2, 4), dtype=np.int64).reshape(n, -1).astype(np.float64)
    limit = (ALIKE * BLOCK**2) ** 2 * sums.shape[1]
    squares = (sums**2).sum(axis=1)
    pairs = []
    for start in range(0, n, ROWS):
        cut = slice(start, start + ROWS)
        distance = squares[cut, None] + squares[None] - 2 * sums[cut] @ sums.T
        pairs += [(start + int(i), int(j)) for i, j in np.argwhere(distance < limit) if start + i < j]
    return pairs
