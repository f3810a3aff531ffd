"""Tests of the assignment to shards: rows of a subject stay together, in a place that a secret key decides.

The place does not depend on the other subjects of the dataset.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.stats import chisquare

from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.finetune.shard_assignment import assign_shards

COUNT = 600


def dataset_of(directory: Path, kept: np.ndarray, subjects: bool = True) -> Dataset:
    file = directory / f"{len(kept)}-{subjects}.npz"
    last = COUNT  # one more row, which is for testing
    kept = np.append(kept, last)
    arrays = {
        "images": np.random.default_rng(0).integers(0, 255, (COUNT + 1, 4, 4), dtype=np.uint8)[kept],
        "labels": (np.arange(COUNT + 1) % 3)[kept],
        "ids": np.array([f"r{i}" for i in kept]),
        "split": np.where(kept == last, "test", "train"),
    }
    if subjects:
        arrays["subjects"] = np.array([f"r{i // 2}" for i in kept])
    np.savez(file, **arrays)
    out = directory / f"{len(kept)}-{subjects}"
    prepare("npz", out, path=file, test_fraction=0.2, seed=0, raw_dir=directory / "raw")
    return Dataset(out)


def test_rows_of_a_subject_stay_together_wherever_others_are(tmp_path: Path) -> None:
    rows = np.arange(COUNT)
    whole = assign_shards(dataset_of(tmp_path, rows), rows, tmp_path / "keys", 8, 4)
    assert np.array_equal(whole.shard[::2], whole.shard[1::2]) and np.array_equal(whole.slice[::2], whole.slice[1::2])
    retained = rows[rows % 7 > 2]
    less = assign_shards(dataset_of(tmp_path, retained), np.arange(len(retained)), tmp_path / "keys", 8, 4)
    assert np.array_equal(less.shard, whole.shard[retained]) and np.array_equal(less.slice, whole.slice[retained])
    assert less.leaves == [whole.leaves[i] for i in retained] and less.key == whole.key
    everywhere = np.bincount(whole.shard[::2] * 4 + whole.slice[::2], minlength=32)
    assert chisquare(everywhere).pvalue > 1e-6


def test_another_key_places_them_otherwise(tmp_path: Path) -> None:
    rows = np.arange(COUNT)
    one, two = (assign_shards(dataset_of(tmp_path, rows), rows, tmp_path / key, 8, 1) for key in ("one", "two"))
    assert one.key != two.key and 0.02 < (one.shard == two.shard).mean() < 0.3
    content = (tmp_path / "one" / "key").read_bytes()
    assert one.key not in content.hex() and (tmp_path / "one" / "key").stat().st_mode & 0o077 == 0


def test_rows_without_a_subject_go_by_their_id_and_are_nobodys(tmp_path: Path) -> None:
    """The ids here equal names of subjects in the other tests, but must not be placed like these subjects."""
    rows = np.arange(COUNT)
    alone = assign_shards(dataset_of(tmp_path, rows, subjects=False), rows, tmp_path / "keys", 2**32, 1).shard
    assert len(set(alone.tolist())) > COUNT - 3
    owned = assign_shards(dataset_of(tmp_path, rows), rows, tmp_path / "keys", 2**32, 1).shard
    assert not set(alone.tolist()) & set(owned.tolist())


def test_the_root_is_of_the_rows_in_the_slices_up_to_one(tmp_path: Path) -> None:
    rows = np.arange(COUNT)
    assignment = assign_shards(dataset_of(tmp_path, rows), rows, tmp_path / "keys", 2, 3)
    some = assignment.up_to(rows[10:], 1, 1)
    assert set(some) == {i for i in range(10, COUNT) if assignment.shard[i] == 1 and assignment.slice[i] <= 1}
    assert assignment.root(some) == assignment.root(some[::-1]) != assignment.root(some[1:])
