"""The writer gives the documented files with the same bytes in any batches, and a failed write changes nothing."""

from __future__ import annotations

import gc
import hashlib
import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.data import writer
from expunge.data.schema import RAW
from expunge.data.source import Batch, Source
from expunge.data.writer import find_duplicates, write_dataset
from expunge.system.errors import DataError
from tests.data.sources import CLASSES, ROWS, arrays, source_of


def files_of(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir())}


def test_the_dataset_has_the_documented_files_and_columns(tmp_path: Path, data: dict) -> None:
    manifest = write_dataset(tmp_path / "d", source_of(data), shard_rows=25)
    names = [f"part-{i:05d}.parquet" for i in range(3)]
    assert sorted(files_of(tmp_path / "d")) == ["classes.json", "duplicates.parquet", "manifest.json", *names]
    assert [manifest["files"][n]["rows"] for n in names] == [25, 25, 10]
    assert (manifest["rows_train"], manifest["rows_test"]) == (45, 15)
    assert manifest["encoding"] == "raw" and manifest["image_shape"] == [5, 4, 3]
    assert json.loads((tmp_path / "d" / "classes.json").read_text()) == {"names": list(CLASSES)}
    table = pa.concat_tables([pq.read_table(tmp_path / "d" / n) for n in names])
    assert table.schema.types == [
        *(pa.string(), pa.string(), pa.int32(), pa.string(), pa.binary()),
        *(pa.int32(), pa.int32(), pa.int32(), pa.binary(16)),
    ]
    assert table["sample_id"].to_pylist() == data["ids"]
    assert table["subject"].to_pylist() == data["subjects"]
    assert table["label"].to_pylist() == data["labels"].tolist()
    assert table["split"].to_pylist() == data["splits"]
    assert table["image"].to_pylist() == [i.tobytes() for i in data["images"]]
    shape = np.array([5, 4, 3], "<u4").tobytes()
    expected = [hashlib.blake2b(shape + i.tobytes(), digest_size=16).digest() for i in data["images"]]
    assert table["digest"].to_pylist() == expected


def test_the_same_rows_give_the_same_bytes_whatever_the_batches(tmp_path: Path, data: dict) -> None:
    write_dataset(tmp_path / "a", source_of(data))
    write_dataset(tmp_path / "b", source_of(data, batch=23))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_duplicates_are_counted_and_listed(tmp_path: Path, data: dict) -> None:
    images = data["images"]
    images[3] = images[0]  # test row with the same label
    images[6] = images[0]  # training row
    images[11] = images[10]  # test row with another label
    manifest = write_dataset(tmp_path / "d", source_of(data))
    assert manifest["duplicates"] == {"rows": 5, "groups": 2, "groups_across_splits": 2, "groups_across_labels": 1}
    listed = pq.read_table(tmp_path / "d" / "duplicates.parquet").to_pydict()
    assert listed["sample_id"] == ["row-000", "row-003", "row-006", "row-010", "row-011"]
    assert listed["group"] == [0, 0, 0, 1, 1]


def test_duplicates_agree_with_a_dictionary_of_bytes() -> None:
    rng = np.random.default_rng(1)
    digests = [bytes([v]) * 16 for v in rng.integers(0, 30, 100)]
    rows = pa.table(
        {
            "sample_id": [str(i) for i in range(100)],
            "label": pa.array(rng.integers(0, 2, 100), pa.int32()),
            "split": rng.choice(["train", "test"], 100).tolist(),
            "digest": pa.array(digests, pa.binary(16)),
        }
    )
    table, counts = find_duplicates(rows)
    groups: dict[bytes, list[int]] = {}
    for i, digest in enumerate(digests):
        groups.setdefault(digest, []).append(i)
    repeated = [g for g in groups.values() if len(g) > 1]
    label, split = rows["label"].to_pylist(), rows["split"].to_pylist()
    assert counts == {
        "rows": sum(map(len, repeated)),
        "groups": len(repeated),
        "groups_across_splits": sum(len({split[i] for i in g}) > 1 for g in repeated),
        "groups_across_labels": sum(len({label[i] for i in g}) > 1 for g in repeated),
    }
    assert table["sample_id"].to_pylist() == [str(i) for g in repeated for i in g]


def test_the_same_pixels_in_another_shape_are_no_duplicate(tmp_path: Path) -> None:
    def batches() -> Iterator[Batch]:
        flat = np.arange(12, dtype=np.uint8)
        yield Batch(["a"], np.array([0]), ["train"], flat.reshape(1, 3, 4, 1))
        yield Batch(["b"], np.array([0]), ["test"], flat.reshape(1, 4, 3, 1))

    manifest = write_dataset(tmp_path / "d", Source("made", ("x",), RAW, batches()))
    assert manifest["duplicates"]["rows"] == 0
    assert manifest["image_shape"] is None


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "GROUP_ROWS", 4)
    alive: list[weakref.ref] = []
    most = 0

    def batches() -> Iterator[Batch]:
        nonlocal most
        for i in range(30):
            images = np.full((2, 4, 4, 1), i, dtype=np.uint8)
            alive.append(weakref.ref(images))
            yield Batch([f"{i}-a", f"{i}-b"], np.zeros(2, np.int32), ["train", "test"], images)
            del images
            gc.collect()
            most = max(most, sum(r() is not None for r in alive))

    write_dataset(tmp_path / "d", Source("made", ("x",), RAW, batches()))
    # Alive may be a row group of two batches, the batch just made, and the one being written.
    assert 1 <= most <= 4


def test_shards_and_row_groups_are_bounded_by_bytes(
    tmp_path: Path, data: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = data["images"][0].size
    monkeypatch.setattr(writer, "GROUP_BYTES", 4 * size)
    monkeypatch.setattr(writer, "SHARD_BYTES", 10 * size)
    manifest = write_dataset(tmp_path / "d", source_of(data, batch=ROWS))
    rows = [e["rows"] for n, e in sorted(manifest["files"].items()) if n.startswith("part")]
    assert rows == [12] * 5  # A shard takes no more groups once it holds ten images.
    assert pq.read_metadata(tmp_path / "d" / "part-00000.parquet").num_row_groups == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.full(ROWS, 3, np.int32)}, r"made: row 'row-000' has label 3, which is outside 0 to 2"),
        ({"labels": np.full(ROWS, -1, np.int32)}, r"has label -1, which is outside 0 to 2"),
        ({"ids": ["x", "y", "x", *(f"r{i}" for i in range(3, ROWS))]}, r"1 sample ids occur .* 'x'"),
        ({"splits": ["valid"] * ROWS}, r"split 'valid' is neither 'train' nor 'test'"),
        ({"splits": ["train"] * ROWS}, r"no test rows"),
        ({"splits": ["test"] * ROWS}, r"no train rows"),
        ({"images": np.zeros((ROWS, 5, 4, 2), np.uint8)}, r"\[5, 4, 2\]"),
        ({"images": np.zeros((ROWS, 5, 0, 1), np.uint8)}, r"\[5, 0, 1\]"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_left(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_dataset(tmp_path / "d", source_of(arrays() | change))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_dataset_that_was_there(tmp_path: Path, data: dict) -> None:
    write_dataset(tmp_path / "d", source_of(data))
    before = files_of(tmp_path / "d")
    with pytest.raises(DataError):
        write_dataset(tmp_path / "d", source_of(arrays() | {"splits": ["train"] * ROWS}))
    assert files_of(tmp_path / "d") == before


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows found"):
        write_dataset(tmp_path / "d", Source("made", ("x",), RAW, iter(())))
