"""Tests of heads in shards: their mean, and deletions from them compared with fits from nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.core import RidgeHead, SoftmaxHead
from expunge.finetune.head_shards import HeadShards, accuracy_of
from expunge.system.errors import CheckpointError, DataError
from expunge.system.files import write_json

SHARDS, CLASSES, ROWS = 3, 4, 120
Rows = tuple[torch.Tensor, torch.Tensor, np.ndarray]


def rows() -> Rows:
    """Return features, labels and shards of 120 rows."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(ROWS) % CLASSES
    z = torch.randn(ROWS, 6, generator=generator) + torch.eye(6)[y] * 2
    return z, y, np.random.default_rng(0).integers(0, SHARDS, ROWS)


def some(part: Rows, mask: np.ndarray) -> Rows:
    return part[0][mask], part[1][mask], part[2][mask]


def fitted(make: Callable[[], RidgeHead | SoftmaxHead], part: Rows) -> HeadShards:
    return HeadShards.fit(make, *part, SHARDS, CLASSES, "key")


def ridge() -> RidgeHead:
    return RidgeHead(1.0, quantum=2.0**-12)


def softmax() -> SoftmaxHead:
    return SoftmaxHead(1e-2, tol=1e-9)


@pytest.mark.parametrize("make", [ridge, softmax])
def test_the_mean_of_logits_gives_the_mean_of_log_probabilities(make: Callable[[], RidgeHead | SoftmaxHead]) -> None:
    part = rows()
    heads = fitted(make, part)
    alone = []
    for number in range(SHARDS):
        z, y, _ = some(part, part[2] == number)
        alone.append(torch.log_softmax(make().fit(z, y, CLASSES).head_.logits(part[0]).double(), 1))
    mean = torch.stack(alone).mean(0)
    torch.testing.assert_close(heads.head_.logits(part[0]).softmax(1).double(), mean.softmax(1), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(alone[0], alone[1])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.sets(st.integers(0, ROWS - 1), min_size=1, max_size=60), min_size=1, max_size=3))
def test_ridge_heads_are_those_of_a_fit_from_nothing_to_the_bit(requests: list[set[int]]) -> None:
    part = rows()
    heads, left = fitted(ridge, part), np.ones(ROWS, bool)
    for request in requests:
        removed = left & np.isin(np.arange(ROWS), list(request))
        left &= ~removed
        before = list(heads.heads)
        heads, again = heads.without(some(part, removed), some(part, left))
        assert again == sorted(set(part[2][removed].tolist()))
        assert all(heads.heads[n] is before[n] for n in range(SHARDS) if n not in again)
    fresh = fitted(ridge, some(part, left)).head_
    assert torch.equal(heads.head_.weight, fresh.weight) and torch.equal(heads.head_.bias, fresh.bias)


def test_softmax_heads_are_within_the_bound() -> None:
    part = rows()
    left = np.arange(ROWS) % 7 != 2
    heads, _ = fitted(softmax, part).without(some(part, ~left), some(part, left))
    fresh = fitted(softmax, some(part, left))
    distance = float((heads.head_.weight.double() - fresh.head_.weight.double()).norm())
    bound = accuracy_of(heads.known)["bound"] + accuracy_of(fresh.known)["bound"]
    assert distance <= bound + 1e-6 * float(fresh.head_.weight.norm()) and bound < 1e-5
    assert float((fitted(softmax, part).head_.weight - fresh.head_.weight).norm()) > 1e-2


@pytest.mark.parametrize("what", ["a class of a shard", "a class", "a shard", "all but one row of a shard"])
@pytest.mark.parametrize("make", [ridge, softmax])
def test_what_is_left_of_emptied_classes_and_shards_is_a_fit_from_scratch(
    what: str, make: Callable[[], RidgeHead | SoftmaxHead], tmp_path: Path
) -> None:
    part = rows()
    here, two = part[2] == 1, part[1].numpy() == 2
    last = np.arange(ROWS) == np.flatnonzero(here)[-1]
    masks = {
        "a class of a shard": here & two,
        "a class": two,
        "a shard": here,
        "all but one row of a shard": here & ~last,
    }
    removed = masks[what]
    heads, _ = fitted(make, part).without(some(part, removed), some(part, ~removed))
    fresh = fitted(make, some(part, ~removed))
    torch.testing.assert_close(heads.head_.weight, fresh.head_.weight, rtol=1e-5, atol=1e-6)
    answers = heads.head_.logits(part[0]).argmax(1)
    assert (answers == 2).any() == (what != "a class")
    if "shard" in what and "class" not in what:
        assert heads.heads[1] is None and fresh.heads[1] is None
    (tmp_path / "model").mkdir()
    heads.save(tmp_path / "model")
    loaded = HeadShards.load(tmp_path / "model", RidgeHead if make is ridge else SoftmaxHead)
    assert torch.equal(loaded.head_.weight, heads.head_.weight) and loaded.key == "key"
    assert [h is None for h in loaded.heads] == [h is None for h in heads.heads]
    assert np.array_equal(loaded.counts_, heads.counts_)


def test_too_few_rows_and_unknown_files_are_refused(tmp_path: Path) -> None:
    part = rows()
    with pytest.raises(DataError, match="none of the 3 shards has the 2 rows"):
        fitted(ridge, some(part, np.arange(ROWS) == 5))
    write_json(tmp_path / "head_shards.json", {"schema": 9})
    with pytest.raises(CheckpointError, match="the schema 9"):
        HeadShards.load(tmp_path, RidgeHead)


@pytest.mark.parametrize("make", [ridge, softmax])
def test_corrected_labels_are_those_of_a_fit_from_nothing(make: Callable[[], RidgeHead | SoftmaxHead]) -> None:
    part = rows()
    moved = (part[2] == 1) & (np.arange(ROWS) % 5 == 0)
    new = part[1].clone()
    new[moved] = (new[moved] + 1) % CLASSES
    now = (part[0], new, part[2])
    first = fitted(make, part)
    before = list(first.heads)
    heads, again = first.corrected(some(part, moved), new[moved], now)
    assert again == [1] and heads.heads[0] is before[0] and heads.heads[2] is before[2]
    fresh = fitted(make, now)
    assert np.array_equal(heads.counts_, fresh.counts_)
    if make is ridge:
        assert torch.equal(heads.head_.weight, fresh.head_.weight)
    else:
        bound = accuracy_of(heads.known)["bound"] + accuracy_of(fresh.known)["bound"]
        assert float((heads.head_.weight - fresh.head_.weight).norm()) <= bound + 1e-6
    assert float((fitted(make, part).head_.weight - fresh.head_.weight).norm()) > 1e-2
