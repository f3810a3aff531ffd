"""Group the owners of images (such as characters) that have nearly equal images."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

BLOCK = 4  # pixels; images are compared by the means of BLOCK x BLOCK pixels
ALIKE = 4.0  # grey levels of 255: root mean square difference of block means below which two images count as equal
ROWS = 512  # images compared at a time; bounds memory


def joined(
    images: np.ndarray, owners: np.ndarray, sets: np.ndarray, linked: Iterable[tuple[int, int]] = ()
) -> np.ndarray:
    """Return for each image the smallest owner in the group of its owner, int64 `(n,)`.

    `images` are uint8 `(n, h, w, c)` with h and w multiples of 4, `owners` are int `(n,)`. Two owners are in one group
    if they have images that differ by less than ALIKE, if `linked` contains the pair, or by a chain of such pairs. Only
    images with the same value of `sets (n,)` are compared. All sums are integers below 2^53, which float64 represents
    exactly, so the result does not depend on the machine.
    """
    # Disjoint sets: the root of each tree is the smallest owner of its group.
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
    """Return the pairs i < j of images whose block means differ by less than ALIKE (root mean square)."""
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
