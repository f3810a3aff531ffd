"""Maps and heads are applied, folded into a head, composed, and saved to and loaded from files."""

from __future__ import annotations

import pytest
import torch

from expunge.core import AffineMap, LinearHead, MlpMap, identity, load_map
from expunge.system.errors import CheckpointError

D, C = 12, 5


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(k: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(normal(D, k, seed=seed))[0]


AFFINE = {
    "dense": AffineMap(normal(D, D), normal(D)),
    "keep": AffineMap(orthonormal(4), normal(D), "keep"),
    "remove": AffineMap(orthonormal(3), normal(D), "remove"),
    "identity": identity(D),
}
MLP = MlpMap((normal(7, D), normal(D, 7)), (normal(7), normal(D)))
ALL = {
    **AFFINE,
    "mlp": MLP,
    "residual": MlpMap(MLP.weights, MLP.biases, residual=True),
    "chain": MLP.compose(AFFINE["keep"]),
}


def head() -> LinearHead:
    return LinearHead(normal(C, D, seed=1), normal(C, seed=2))


@pytest.mark.parametrize("name", AFFINE)
def test_an_affine_map_is_its_matrix_and_folds_into_the_head(name: str) -> None:
    affine, z = AFFINE[name], normal(20, D, seed=3)
    torch.testing.assert_close(affine(z), z @ affine.matrix().T + affine.bias)
    folded = affine.fold_into(head()).logits(z)
    torch.testing.assert_close(folded, head().logits(affine(z)), rtol=1e-5, atol=1e-5)


def test_projections_keep_and_remove() -> None:
    basis, z = orthonormal(4), normal(9, D)
    keep, remove = AffineMap(basis, torch.zeros(D), "keep"), AffineMap(basis, torch.zeros(D), "remove")
    torch.testing.assert_close(keep(z) + remove(z), z)
    torch.testing.assert_close(keep(keep(z)), keep(z))
    assert float((remove(z) @ basis).abs().max()) < 1e-14


def test_the_identity_changes_no_bit() -> None:
    z = normal(9, D).float()
    assert torch.equal(identity(D)(z), z)
    assert torch.equal(identity(D).fold_into(head()).weight, head().weight)


def test_an_mlp_map_is_a_relu_network() -> None:
    z = normal(20, D).float()
    first, second = torch.nn.Linear(D, 7), torch.nn.Linear(7, D)
    plain = MlpMap((first.weight, second.weight), (first.bias, second.bias))
    expected = torch.nn.Sequential(first, torch.nn.ReLU(), second)(z).detach()
    torch.testing.assert_close(plain(z), expected)
    torch.testing.assert_close(MlpMap(plain.weights, plain.biases, residual=True)(z), z + expected)


@pytest.mark.parametrize("outer", ALL)
@pytest.mark.parametrize("inner", ALL)
def test_composing_applies_the_inner_map_first(outer: str, inner: str) -> None:
    z = normal(6, D, seed=4)
    both = ALL[outer].compose(ALL[inner])
    torch.testing.assert_close(both(z), ALL[outer](ALL[inner](z)))
    if outer in AFFINE and inner in AFFINE:
        assert isinstance(both, AffineMap)


@pytest.mark.parametrize("name", ALL)
def test_saved_maps_load_back_with_the_same_bytes(name: str, tmp_path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        ALL[name].save(tmp_path / folder)
    for file in ("map.json", "map.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    z = normal(6, D).float()
    assert torch.equal(load_map(tmp_path / "a")(z), ALL[name](z))


def test_a_low_rank_map_stores_only_its_basis(tmp_path) -> None:
    AFFINE["keep"].save(tmp_path)
    assert (tmp_path / "map.safetensors").stat().st_size < 8 * D * D


def test_half_precision_features_are_mapped_in_float32() -> None:
    z = normal(6, D).to(torch.bfloat16)
    for each in ALL.values():
        assert each(z).dtype == torch.float32
        torch.testing.assert_close(each(z), each(z.double()).float(), rtol=1e-3, atol=1e-3)


def test_files_that_hold_no_map_are_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_map(tmp_path)
    MLP.save(tmp_path)
    (tmp_path / "map.json").write_text('{"kind": "spline"}')
    with pytest.raises(CheckpointError, match="spline"):
        load_map(tmp_path)
    (tmp_path / "map.json").write_text('{"kind": "affine", "form": "dense"}')
    with pytest.raises(CheckpointError, match="weight"):
        load_map(tmp_path)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"must have the shape \(n, 12\)"):
        MLP(normal(3, D + 1))
    with pytest.raises(ValueError, match="square"):
        AffineMap(normal(D, 3), normal(D))
    with pytest.raises(ValueError, match="composed"):
        MLP.compose(identity(D + 1))
    with pytest.raises(ValueError, match="cannot be folded into a head"):
        identity(D + 1).fold_into(head())
    with pytest.raises(ValueError, match="do not map features onto features"):
        MlpMap((normal(7, D), normal(D, 8)), (normal(7), normal(D)))
    with pytest.raises(ValueError, match="weight"):
        LinearHead(normal(C, D), normal(C + 1))


def test_heads_save_and_load(tmp_path) -> None:
    original = head()
    original.save(tmp_path / "head.safetensors")
    loaded = LinearHead.load(tmp_path / "head.safetensors")
    assert torch.equal(loaded.weight, original.weight)
    assert torch.equal(loaded.bias, original.bias)
    assert loaded.weight.dtype == torch.float32
    with pytest.raises(CheckpointError, match=r"absent\.safetensors"):
        LinearHead.load(tmp_path / "absent.safetensors")
