"""Moments equal those of NumPy in any order of merging, rows can be subtracted again, and bad input is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.core import Moments
from expunge.system.errors import CheckpointError, DataError


def rows(n: int, d: int, seed: int = 0, offset: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator) + offset


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_moments_equal_numpy_on_the_values_as_stored(dtype: torch.dtype) -> None:
    z = rows(3000, 7).to(dtype)
    moments, exact = Moments.of(z), z.double().numpy()
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.cov(), np.cov(exact.T), rtol=1e-9)
    np.testing.assert_allclose(moments.cov(ddof=0), np.cov(exact.T, ddof=0), rtol=1e-9)
    np.testing.assert_allclose(moments.second(), exact.T @ exact / 3000, rtol=1e-12)
    h = np.hstack([exact, np.ones((3000, 1))])
    np.testing.assert_allclose(moments.second(augmented=True), h.T @ h / 3000, rtol=1e-12)
    point = np.arange(7.0)
    about = (exact - point).T @ (exact - point) / 3000
    np.testing.assert_allclose(moments.second_about(torch.from_numpy(point)), about, rtol=1e-9)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    z = rows(5000, 6)
    whole = Moments.of(z)
    monkeypatch.setattr("expunge.core.moments.CHUNK_NUMBERS", 60)
    monkeypatch.setattr("expunge.core.moments.MIN_CHUNK_ROWS", 7)
    pieces = Moments.of(z)
    assert pieces.n == whole.n
    assert relative(pieces.S, whole.S) < 1e-13


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(6)), cuts=st.lists(st.integers(1, 399), min_size=5, max_size=5, unique=True))
def test_shards_merge_in_any_order(order: list[int], cuts: list[int]) -> None:
    z = rows(400, 5, offset=10.0)
    shards = torch.tensor_split(z, sorted(cuts))
    merged = Moments.total(Moments.of(shards[i]) for i in order)
    whole = Moments.of(z)
    assert merged.n == whole.n
    assert relative(merged.s, whole.s) < 1e-10
    assert relative(merged.S, whole.S) < 1e-10
    assert relative(merged.cov(), whole.cov()) < 1e-10


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_moments_ignore_the_order_of_rows_and_turn_and_scale_with_the_features(seed: int, scale: float) -> None:
    z = rows(200, 5).double()
    generator = torch.Generator().manual_seed(seed)
    shuffled = Moments.of(z[torch.randperm(200, generator=generator)])
    assert relative(shuffled.S, Moments.of(z).S) < 1e-12
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    assert relative(Moments.of(scale * z @ turn).cov(), scale**2 * turn.T @ Moments.of(z).cov() @ turn) < 1e-9


def test_erasure_needs_no_retained_row() -> None:
    z = rows(2000, 8)
    total, forget = Moments.of(z), Moments.of(z[:150])
    retained = total - forget
    assert retained.n == 1850
    assert relative(retained.cov(), Moments.of(z[150:]).cov()) < 1e-11
    assert relative((retained + forget).S, total.S) < 1e-14
    nothing = total - total
    assert nothing.n == 0


def test_a_downdate_to_few_rows_in_many_dimensions_passes() -> None:
    z = rows(300, 50)
    left = Moments.of(z) - Moments.of(z[5:])
    assert left.n == 5
    assert relative(left.cov(), Moments.of(z[:5]).cov()) < 1e-9


def test_rows_that_were_never_added_cannot_be_removed() -> None:
    z = rows(100, 4)
    total = Moments.of(z)
    with pytest.raises(DataError, match=r"cannot remove 101 rows from the moments of 100"):
        total - Moments.of(rows(101, 4))
    with pytest.raises(DataError, match="not among the 100 rows"):
        total - Moments.of(rows(40, 4, offset=50.0))
    twice = total - Moments.of(z[:60])
    with pytest.raises(DataError, match="not among the 40 rows"):
        twice - Moments.of(z[:40])
    with pytest.raises(DataError, match="not among"):
        total - Moments.of(rows(100, 4, seed=5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_change_nothing(bad: float) -> None:
    moments = Moments.of(rows(10, 3))
    before = moments.S.clone()
    z = rows(2000, 3)
    z[1234, 1] = bad
    with pytest.raises(DataError, match="row 1234 "):
        moments.update(z)
    assert moments.n == 10
    assert torch.equal(moments.S, before)


def test_shapes_and_dtypes_are_checked() -> None:
    moments = Moments(4)
    with pytest.raises(ValueError, match="shape"):
        moments.update(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="floating"):
        moments.update(torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="of 4 and of 5 dimensions cannot be combined"):
        moments + Moments(5)
    with pytest.raises(DataError, match="at least 1 rows are needed, but there are 0"):
        _ = moments.mean
    with pytest.raises(DataError, match="at least 2 rows"):
        Moments.of(rows(1, 4)).cov()


def test_saved_bytes_repeat_and_load_back(tmp_path) -> None:
    moments = Moments.of(rows(100, 6))
    for name in ("a", "b"):
        moments.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = Moments.load(tmp_path / "a")
    assert loaded.n == 100
    assert torch.equal(loaded.S, moments.S)
    assert torch.equal(loaded.s, moments.s)


def test_other_files_are_refused(tmp_path) -> None:
    (tmp_path / "text").write_text("no tensors here")
    with pytest.raises(CheckpointError, match="text"):
        Moments.load(tmp_path / "text")
    with pytest.raises(CheckpointError, match="missing"):
        Moments.load(tmp_path / "missing")
    Moments.of(rows(100, 6)).save(tmp_path / "cut")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="cut"):
        Moments.load(tmp_path / "cut")
