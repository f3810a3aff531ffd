"""A dataset gives the columns and images of its source, and damaged or changed files are named."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from expunge.data.dataset import Dataset
from expunge.data.schema import ENCODED, RAW
from expunge.data.source import Batch, Source
from expunge.data.writer import write_dataset
from expunge.system.errors import DataError, ManifestError

SHAPES = [(3, 4, 1), (5, 2, 3), (4, 4, 3), (6, 1, 1)]


def pixels(i: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, shape or SHAPES[i % 4], dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(out, "PNG")
    return out.getvalue()


def written(out: Path, encoding: str, shape: tuple[int, ...] | None = None, n: int = 11) -> Dataset:
    """Write `n` rows, of which the last is a test row. Sizes differ where `shape` is None."""

    def batches() -> Iterator[Batch]:
        for i in range(n):
            image = pixels(i, shape)
            split = "test" if i == n - 1 else "train"
            yield Batch([f"r{i}"], np.array([0]), [split], [png(image)] if encoding == ENCODED else image[None])

    write_dataset(out, Source("made", ("x",), encoding, batches()), shard_rows=4)
    return Dataset(out)


def test_columns_are_those_of_the_source(dataset: Dataset, data: dict) -> None:
    assert dataset.rows == len(dataset) == 60
    assert dataset.class_names == ["ant", "bee", "cat"]
    assert dataset.image_shape == (5, 4, 3)
    assert dataset.labels().dtype == np.int32
    np.testing.assert_array_equal(dataset.labels(), data["labels"])
    np.testing.assert_array_equal(dataset.splits(), data["splits"])
    assert dataset.sample_ids() == data["ids"]
    assert dataset.table(["subject"])["subject"].to_pylist() == data["subjects"]
    assert dataset.content_bytes().tolist() == [60] * 60
    with pytest.raises(DataError, match="no column 'age'"):
        dataset.table(["age"])


@pytest.mark.parametrize("rows_per_batch", [1, 7, 25, 26, 100])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (24, 26), (25, 50), (3, 59), (60, None), (5, 5)])
def test_batches_cover_their_range_in_order(
    dataset: Dataset, data: dict, rows_per_batch: int, start: int, stop
) -> None:
    got = list(dataset.iter_batches(rows_per_batch, start, stop))
    end = 60 if stop is None else stop
    assert [row for row, _ in got] == list(range(start, end, rows_per_batch))
    for row, images in got:
        np.testing.assert_array_equal(images, data["images"][row : min(row + rows_per_batch, end)])


@pytest.mark.parametrize("rows", [[], [0], [59, 0, 30, 30, 1], list(range(60)), list(range(59, -1, -1))])
def test_images_of_rows_come_in_the_order_asked_for(dataset: Dataset, data: dict, rows: list[int]) -> None:
    np.testing.assert_array_equal(dataset.images(np.array(rows, dtype=np.int64)), data["images"][rows])


def test_images_without_rows_are_all_images(dataset: Dataset, data: dict) -> None:
    np.testing.assert_array_equal(dataset.images(), data["images"])


@pytest.mark.parametrize("rows", [[-1], [60]])
def test_rows_outside_are_an_error(dataset: Dataset, rows: list[int]) -> None:
    with pytest.raises(IndexError):
        dataset.images(np.array(rows))


@pytest.mark.parametrize("encoding", [RAW, ENCODED])
def test_images_of_different_sizes_are_a_list(tmp_path: Path, encoding: str) -> None:
    dataset = written(tmp_path / "d", encoding)
    assert dataset.image_shape is None
    images = dataset.images(np.array([9, 2, 2]))
    assert isinstance(images, list)
    for got, i in zip(images, [9, 2, 2], strict=True):
        np.testing.assert_array_equal(got, pixels(i))
    for row, batch in dataset.iter_batches(3, 1):
        for k, got in enumerate(batch):
            np.testing.assert_array_equal(got, pixels(row + k))


def test_encoded_images_of_one_size_are_an_array(tmp_path: Path) -> None:
    dataset = written(tmp_path / "d", ENCODED, (4, 3, 3))
    assert dataset.image_shape == (4, 3, 3)
    np.testing.assert_array_equal(dataset.images(), [pixels(i, (4, 3, 3)) for i in range(11)])


def test_the_digest_changes_with_the_content(tmp_path: Path) -> None:
    one, two = written(tmp_path / "a", RAW), written(tmp_path / "b", RAW)
    other = written(tmp_path / "c", RAW, n=12)
    assert one.digest == two.digest != other.digest


def test_a_truncated_shard_is_named(dataset: Dataset) -> None:
    shard = dataset.directory / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ManifestError, match=r"part-00001\.parquet: differs from its manifest"):
        Dataset(dataset.directory)


def test_a_changed_byte_is_named(dataset: Dataset) -> None:
    shard = dataset.directory / "part-00002.parquet"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ManifestError, match=r"part-00002\.parquet"):
        Dataset(dataset.directory)


@pytest.mark.parametrize("name", ["classes.json", "part-00000.parquet", "manifest.json"])
def test_a_missing_file_is_named(dataset: Dataset, name: str) -> None:
    (dataset.directory / name).unlink()
    with pytest.raises(ManifestError, match=name):
        Dataset(dataset.directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["files"]["part-00001.parquet"].update(rows=24), r"part-00001\.parquet: holds 25 rows, .* says 24"),
        (lambda m: m["files"]["part-00001.parquet"].pop("rows"), "says None"),
        (lambda m: m["files"].pop("part-00001.parquet"), r"part-00001\.parquet: is not in the manifest"),
        (lambda m: m.pop("duplicates"), "lacks duplicates"),
        (lambda m: m.update(schema=99), "schema 99"),
    ],
)
def test_a_manifest_that_disagrees_is_refused(dataset: Dataset, change, message: str) -> None:
    file = dataset.directory / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match=message):
        Dataset(dataset.directory)


def test_another_kind_of_directory_is_refused(tmp_path: Path) -> None:
    from expunge.system.files import staged_dir, write_manifest

    with staged_dir(tmp_path / "m") as tmp:
        write_manifest(tmp, "train")
    with pytest.raises(ManifestError, match="not a dataset"):
        Dataset(tmp_path / "m")


def test_a_shard_whose_columns_are_of_other_types_is_refused(tmp_path: Path) -> None:
    dataset = written(tmp_path / "dataset", RAW, (5, 4, 3))
    pq.write_table(pa.table({"label": [0.5] * 4}), tmp_path / "dataset/part-00001.parquet")
    with pytest.raises(ManifestError, match="dataset: damaged, or not what it should be"):
        dataset.table(["label"])


def test_a_shard_with_fewer_rows_than_its_footer_said_is_refused(tmp_path: Path) -> None:
    dataset, shard = written(tmp_path / "dataset", RAW, (5, 4, 3)), tmp_path / "dataset/part-00001.parquet"
    pq.write_table(pq.read_table(shard).slice(0, 3), shard)
    with pytest.raises(ManifestError, match=r"part-00001\.parquet, row group 0: .* 3 rows instead of 4"):
        dataset.inputs()
