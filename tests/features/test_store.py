"""The Parquet feature store can be read by any Parquet reader, and our reader maps it into memory."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from expunge.features import parquet
from expunge.features.store import ROW_GROUP, STORAGE_TYPES, FeatureStore, Shards, groups, narrow, widen, write_shard
from expunge.system.errors import ManifestError
from expunge.system.files import read_manifest, staged_dir, write_json, write_manifest

N, DIM, FIRST = ROW_GROUP + 1000, 7, ROW_GROUP + 300


def columns(n, subject=False):
    table = {
        "sample_id": [f"train-{i}" for i in range(n)],
        "label": pa.array(np.arange(n) % 10, pa.int32()),
        "split": ["train"] * n,
    }
    return pa.table(table | ({"subject": [f"s{i % 5}" for i in range(n)]} if subject else {}))


@pytest.fixture
def z():
    return np.random.default_rng(0).normal(size=(N, DIM)).astype(np.float32)


@pytest.fixture
def directory(tmp_path, z):
    rows = columns(N)
    with staged_dir(tmp_path / "store") as staging:
        write_shard(staging / "part-00000.parquet", rows.slice(0, FIRST), z[:FIRST])
        write_shard(staging / "part-00001.parquet", rows.slice(FIRST), z[FIRST:])
        write_manifest(
            staging,
            "test",
            rows={"part-00000.parquet": FIRST, "part-00001.parquet": N - FIRST},
            dim=DIM,
            model_digest="sha256:x",
        )
    return tmp_path / "store"


def test_rows_come_back_by_position(directory, z):
    store = FeatureStore(directory, verify=True)
    assert (store.rows, store.dim) == (N, DIM)
    np.testing.assert_array_equal(store.z(), z)
    rng = np.random.default_rng(1)
    for rows in (rng.permutation(N)[:500], rng.integers(0, N, 500), np.arange(FIRST - 5, FIRST + 5), np.array([N - 1])):
        np.testing.assert_array_equal(store.z(rows), z[rows])
    assert store.z(np.array([], np.int64)).shape == (0, DIM)


def test_chunks_cover_every_row_in_order(directory, z):
    at = 0
    for start, chunk in FeatureStore(directory).iter_z():
        assert start == at
        np.testing.assert_array_equal(chunk, z[start : start + len(chunk)])
        at += len(chunk)
    assert at == N


def test_columns_come_back_by_position(directory):
    store = FeatureStore(directory)
    assert store.column("sample_id")[[0, FIRST, N - 1]].tolist() == ["train-0", f"train-{FIRST}", f"train-{N - 1}"]
    np.testing.assert_array_equal(store.column("label"), np.arange(N) % 10)


def test_other_parquet_readers_see_the_same_values(directory, z):
    table = pq.read_table(directory / "part-00000.parquet")
    assert table.schema.field("z").type == pa.list_(pa.field("item", pa.float32(), False), DIM)
    np.testing.assert_array_equal(table["z"].combine_chunks().flatten().to_numpy().reshape(-1, DIM), z[:FIRST])


def test_the_same_rows_give_the_same_bytes(tmp_path, z):
    for name in ("a", "b"):
        write_shard(tmp_path / name, columns(2000, subject=True), z[:2000])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "subject" in pq.read_schema(tmp_path / "a").names


def test_mapped_numbers_are_aligned(directory):
    chunks = [chunk for _, chunk in FeatureStore(directory).iter_z()]
    assert len(chunks) > 1 and all(chunk.ctypes.data % 64 == 0 for chunk in chunks)


def with_groups(directory, change=0):
    """Write the positions of z, off by `change` bytes, into the store's manifest."""
    manifest = read_manifest(directory)
    for name, entry in manifest["files"].items():
        entry["groups"] = [[first + change, rows] for first, rows in groups(directory / name, DIM)]
    write_json(directory / "manifest.json", manifest)


def test_a_manifest_that_knows_where_z_lies_spares_the_footers(directory, z, monkeypatch):
    with_groups(directory)
    monkeypatch.setattr(pq, "read_metadata", None)
    np.testing.assert_array_equal(FeatureStore(directory).z(), z)
    np.testing.assert_array_equal(FeatureStore(directory).z(np.arange(N)), z)


def test_a_manifest_with_a_wrong_offset_of_z_is_refused(directory):
    with_groups(directory, 4)
    with pytest.raises(ManifestError, match=r"part-00000\.parquet: z is not where its manifest says"):
        FeatureStore(directory, verify=True)


def test_a_shard_is_whole_however_few_bytes_the_system_takes_at_once(tmp_path, z, monkeypatch):
    write_shard(tmp_path / "a", columns(N), z)
    wrote = []
    monkeypatch.setattr(parquet.os, "writev", lambda file, parts: wrote.append(1) or os.write(file, parts[0][:50_000]))
    write_shard(tmp_path / "b", columns(N), z)
    assert len(wrote) > 10 and (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_position_out_of_range_is_an_error(directory):
    with pytest.raises(IndexError, match=str(N)):
        FeatureStore(directory).z(np.array([N]))


def test_a_truncated_shard_is_named(directory):
    shard = directory / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(ManifestError, match=r"part-00001\.parquet"):
        FeatureStore(directory)


def test_a_flipped_byte_is_found_on_request(directory):
    shard = directory / "part-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    FeatureStore(directory)
    with pytest.raises(ManifestError, match=r"part-00000\.parquet: differs"):
        FeatureStore(directory, verify=True)


def test_a_manifest_with_a_wrong_number_of_rows_is_refused(directory):
    manifest = read_manifest(directory)
    manifest["files"]["part-00000.parquet"]["rows"] -= 1
    write_json(directory / "manifest.json", manifest)
    with pytest.raises(ManifestError, match="its manifest says"):
        FeatureStore(directory)


@pytest.mark.parametrize("dim", [True, 0, 1.0, "4", None])
def test_a_manifest_with_a_dimension_that_is_no_count_is_refused(directory, dim):
    write_json(directory / "manifest.json", read_manifest(directory) | {"dim": dim})
    with pytest.raises(ManifestError, match="is not a feature store"):
        FeatureStore(directory)


def test_a_shard_whose_columns_are_of_other_types_is_refused(directory):
    store, shard = FeatureStore(directory), directory / "part-00001.parquet"
    pq.write_table(pa.table({"label": pa.array([1.5, 2.5])}), shard)
    with pytest.raises(ManifestError, match="store: damaged, or not what it should be"):
        store.column("label")


def test_a_footer_that_puts_z_where_no_shard_has_it_is_refused(tmp_path, z, monkeypatch):
    monkeypatch.setattr(parquet, "ALIGNED", 1)
    found = []
    for rows in range(20, 24):  # z begins at another byte in each
        try:
            write_shard(tmp_path / "shard", columns(rows), z[:rows])
        except ManifestError as e:
            found.append(str(e))
    assert found and all("shard: its footer puts z at byte" in said for said in found)


def test_a_store_may_point_to_another(directory, z, tmp_path):
    with staged_dir(tmp_path / "retrained" / "1") as staging:
        write_manifest(staging, "test", same_as="../../store")
    np.testing.assert_array_equal(FeatureStore(tmp_path / "retrained" / "1").z(), z)


def test_another_directory_is_not_a_store(tmp_path):
    with staged_dir(tmp_path / "x") as staging:
        write_manifest(staging, "elsewhere")
    with pytest.raises(ManifestError, match="not a feature store"):
        FeatureStore(tmp_path / "x")


TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("dtype", TORCH)
def test_features_in_fewer_bits_are_rounded_as_torch_rounds(dtype, z):
    hard = np.array([0.0, -0.0, 1e-8, -3e-5, 6.1e-5, 65504, 65519, 1e5, -3e38, 1 + 2**-8, 1 + 3 * 2**-8], np.float32)
    values = np.concatenate([hard, z[:, 0]])
    expected = torch.from_numpy(values).to(TORCH[dtype])
    stored = narrow(values, dtype)
    assert stored.dtype == STORAGE_TYPES[dtype].stored and stored.itemsize == 2
    torch.testing.assert_close(torch.from_numpy(widen(stored, dtype)), expected.float(), rtol=0, atol=0)
    assert stored.tobytes() == expected.view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize("dtype", TORCH)
def test_features_stored_in_fewer_bits_come_back_rounded(tmp_path, z, dtype):
    path, stored = tmp_path / "part-00000.parquet", narrow(z, dtype)
    write_shard(path, columns(N), stored, dtype)
    shards, kept = Shards([path], DIM, dtype), widen(stored, dtype)
    np.testing.assert_array_equal(shards.z(), kept)
    rows = np.array([N - 1, 0, ROW_GROUP])
    np.testing.assert_array_equal(shards.z(rows), kept[rows])
    assert all(chunk.dtype == np.float32 for _, chunk in shards.iter_z())
    field = pq.read_schema(path).field("z").type.value_field
    assert field.type == STORAGE_TYPES[dtype].arrow
    assert (field.metadata or {}).get(b"dtype") == (b"bfloat16, little endian" if dtype == "bf16" else None)


def test_an_unknown_storage_type_is_refused(directory):
    manifest = read_manifest(directory)
    write_json(directory / "manifest.json", manifest | {"dtype": "float8"})
    with pytest.raises(ManifestError, match="stored as 'float8'"):
        FeatureStore(directory)
