"""Near-duplicate pictures are grouped exactly as a plain search over all pairs groups them."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data.readers import near_duplicates
from expunge.data.readers.near_duplicates import ALIKE, joined


def reference(images: np.ndarray, owners: np.ndarray, sets: np.ndarray, linked: list) -> list[int]:
    """Return the groups found by comparing all pairs of float64 means, with the components of networkx."""
    n, h, w, c = images.shape
    means = images.reshape(n, h // 4, 4, w // 4, 4, c).astype(np.float64).mean(axis=(2, 4))
    graph = networkx.Graph(linked)
    graph.add_nodes_from(owners.tolist())
    for i in range(n):
        for j in range(i):
            if sets[i] == sets[j] and np.sqrt(((means[i] - means[j]) ** 2).mean()) < ALIKE:
                graph.add_edge(int(owners[i]), int(owners[j]))
    smallest = {o: min(part) for part in networkx.connected_components(graph) for o in part}
    return [smallest[int(o)] for o in owners]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 24), st.sampled_from([3, 6, 9]))
def test_groups_are_those_of_a_plain_search(seed: int, n: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    motif = rng.integers(60, 190, (3, 8, 12, 3))
    noise = rng.integers(-spread, spread + 1, (n, 2, 3, 3)).repeat(4, axis=1).repeat(4, axis=2)
    images = (motif[rng.integers(0, 3, n)] + noise).astype(np.uint8)
    owners, sets = rng.integers(0, 9, n), rng.integers(0, 2, n)
    present = np.unique(owners)
    linked = [(int(a), int(b)) for a, b in rng.choice(present, (1, 2))]
    assert joined(images, owners, sets, linked).tolist() == reference(images, owners, sets, linked)


def test_the_search_in_blocks_misses_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    images[6] = images[1]
    monkeypatch.setattr(near_duplicates, "ROWS", 3)
    assert joined(images, np.arange(7), np.zeros(7)).tolist() == [0, 1, 2, 3, 4, 5, 1]


def test_a_pair_at_the_limit_is_no_near_duplicate() -> None:
    images = np.zeros((3, 4, 4, 1), np.uint8)
    images[1], images[2] = 4, 7  # The first pair is 4 levels apart, the second 3.
    assert joined(images, np.arange(3), np.zeros(3)).tolist() == [0, 1, 1]


def test_links_to_owners_without_pictures_are_ignored() -> None:
    images = np.zeros((1, 4, 4, 1), np.uint8)
    assert joined(images, np.array([5]), np.zeros(1), [(5, 8), (8, 9)]).tolist() == [5]
