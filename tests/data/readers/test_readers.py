"""The readers of digits, image folders, Parquet and npz give the source's rows and refuse bad input."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from expunge.data.source import stratified_test_rows
from expunge.system.errors import DataError
from tests.data.sources import prepared, refused


def png(seed: int, shape: tuple[int, ...] = (4, 5, 3)) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_test_rows_are_drawn_from_each_class_by_the_seed() -> None:
    labels = np.array([0] * 10 + [1] * 3 + [2])
    mask = stratified_test_rows(labels, 0.2, 0)
    assert Counter(labels[mask].tolist()) == {0: 2, 1: 1}
    np.testing.assert_array_equal(mask, stratified_test_rows(labels, 0.2, 0))
    assert any((stratified_test_rows(labels, 0.2, s) != mask).any() for s in range(1, 4))
    assert Counter(labels[stratified_test_rows(labels, 0.99, 0)].tolist()) == {0: 9, 1: 2}
    with pytest.raises(DataError, match="test_fraction is 1"):
        stratified_test_rows(labels, 1, 0)


def test_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, "digits", test_fraction=0.25, seed=1)
    bunch = load_digits()
    assert dataset.rows == 1797 and dataset.image_shape == (8, 8, 1)
    assert dataset.class_names == [str(i) for i in range(10)]
    np.testing.assert_array_equal(dataset.labels(), bunch.target)
    back = np.round(np.asarray(dataset.images())[..., 0] / 255 * 16)
    np.testing.assert_array_equal(back, bunch.images)
    test = dataset.splits() == "test"
    for c in range(10):
        assert abs(test[bunch.target == c].mean() - 0.25) < 0.01


def folder(root: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(i, (4 + i % 2, 5, 3) if i % 3 else (6, 6)))
    return root


def test_an_image_folder_gives_classes_ids_and_a_stratified_split(tmp_path: Path) -> None:
    names = [f"{c}/{sub}{i}.png" for c in ("dog", "cat") for sub in ("", "more/") for i in range(4)]
    root = folder(tmp_path / "in", names)
    (root / ".DS_Store").write_bytes(b"x")
    dataset = prepared(tmp_path, "image-folder", path=root, test_fraction=0.25, seed=2)
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.encoding == "encoded" and dataset.image_shape is None
    assert sorted(dataset.sample_ids()) == sorted(names)
    assert Counter(zip(dataset.labels().tolist(), dataset.splits().tolist(), strict=True)) == {
        (0, "train"): 6, (0, "test"): 2, (1, "train"): 6, (1, "test"): 2,
    }  # fmt: skip
    stored = dataset.table(["image"])["image"].to_pylist()
    for row, name in enumerate(dataset.sample_ids()):
        assert dataset.labels()[row] == ["cat", "dog"].index(name.split("/")[0])
        assert stored[row] == (root / name).read_bytes()
        expected = np.asarray(Image.open(root / name))
        np.testing.assert_array_equal(dataset.images(np.array([row]))[0], expected.reshape(*expected.shape[:2], -1))


def test_an_image_folder_with_train_and_test_keeps_its_split(tmp_path: Path) -> None:
    names = [f"train/a/{i}.png" for i in range(3)] + ["train/b/0.png", "test/a/0.png"]
    dataset = prepared(tmp_path, "image-folder", path=folder(tmp_path / "in", names))
    assert dataset.sample_ids() == names
    assert dataset.splits().tolist() == ["train"] * 4 + ["test"]
    assert dataset.labels().tolist() == [0, 0, 0, 1, 0]


def test_val_is_the_test_split_of_an_image_folder(tmp_path: Path) -> None:
    """The reader used to take the folders `train` and `val` for two classes."""
    names = ["train/a/0.png", "train/a/1.png", "train/b/0.png", "val/a/0.png", "val/b/0.png"]
    refused(
        tmp_path,
        "val: is outside train/",
        "image-folder",
        folder(tmp_path / "all", [*names, "test/a/0.png"]),
    )
    dataset = prepared(tmp_path, "image-folder", path=folder(tmp_path / "in", names))
    assert dataset.class_names == ["a", "b"] and dataset.sample_ids() == names
    assert dataset.splits().tolist() == ["train"] * 3 + ["test"] * 2


def test_bad_image_folders_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", [f"a/{i}.png" for i in range(4)])
    (root / "a" / "2.png").write_bytes(png(0)[:-20])
    refused(tmp_path, r"a/2\.png: not a readable image", "image-folder", root)
    (root / "a" / "2.png").unlink()
    (root / "notes.txt").write_text("x")
    refused(tmp_path, r"notes\.txt: is not an image", "image-folder", root)
    (root / "notes.txt").rename(root / "loose.png")
    refused(tmp_path, r"loose\.png: is not in a class folder", "image-folder", root)
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "no images", "image-folder", tmp_path / "empty")
    refused(tmp_path, "not a directory", "image-folder", root / "loose.png")
    refused(tmp_path, "no such file or directory", "image-folder", tmp_path / "nowhere")
    refused(tmp_path, "needs a path", "image-folder", None)
    refused(tmp_path, "unknown data source 'coco'", "coco", root)
    mixed = folder(tmp_path / "mixed", ["train/a/0.png", "test/a/0.png", "b/0.png"])
    refused(tmp_path, r"b: is outside train/ and test/", "image-folder", mixed)


def rows(n: int = 8) -> dict:
    return {
        "image": [png(i) for i in range(n)],
        "label": ["zebra" if i % 2 else "ape" for i in range(n)],
        "id": [f"x{i}" for i in range(n)],
        "subject": [None if i == 0 else f"s{i}" for i in range(n)],
        "split": ["test" if i >= 6 else "train" for i in range(n)],
    }


def parquet(file: Path, **changes: object) -> Path:
    columns = {k: v for k, v in (rows() | changes).items() if v is not None}
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, row_group_size=3)
    return file


def test_a_parquet_file_gives_its_columns(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, "parquet", path=parquet(tmp_path / "in.parquet"))
    table = dataset.table(["sample_id", "subject", "label", "split", "image"]).to_pydict()
    given = rows()
    assert dataset.class_names == ["ape", "zebra"]
    assert table["label"] == [0, 1] * 4
    assert (table["sample_id"], table["subject"]) == (given["id"], given["subject"])
    assert (table["split"], table["image"]) == (given["split"], given["image"])


def test_a_parquet_directory_may_have_integer_labels_and_image_structs(tmp_path: Path) -> None:
    structs = [{"bytes": png(i), "path": None} for i in range(8)]
    plain = {"id": None, "subject": None, "split": None, "image": structs}
    parquet(tmp_path / "in" / "b.parquet", **plain, label=[3] * 4 + [0] * 4)
    parquet(tmp_path / "in" / "a.parquet", **plain, label=[1] * 4 + [2] * 4)
    dataset = prepared(tmp_path, "parquet", path=tmp_path / "in", test_fraction=0.25)
    assert dataset.labels().tolist() == [1] * 4 + [2] * 4 + [3] * 4 + [0] * 4
    assert dataset.class_names == ["0", "1", "2", "3"]
    assert dataset.sample_ids() == [f"{i:02d}" for i in range(16)]
    assert (dataset.splits() == "test").reshape(4, 4).sum(axis=1).tolist() == [1] * 4
    assert "subject" not in dataset.columns


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": None}, "no column 'label'; it has image, id, subject, split"),
        ({"image": None}, "no column 'image'"),
        ({"label": [0, 1, -1, 0, 0, 0, 0, 0]}, "row 2 has label -1, which is outside"),
        ({"label": [0, 1, None, 0, 0, 0, 0, 0]}, "row 2 has no label"),
        ({"label": [0.5] * 8}, "column 'label' has the type double"),
        ({"image": [png(0)] * 7 + [None]}, "row 7 has no image"),
        ({"image": [png(0)] * 4 + [b"junk"] * 4}, "x4: not a readable image"),
        ({"id": ["a"] * 8}, "1 sample ids occur"),
        ({"split": ["train"] * 7 + ["dev"]}, "split 'dev' is neither"),
    ],
)
def test_bad_parquet_files_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    refused(tmp_path, message, "parquet", parquet(tmp_path / "in.parquet", **changes))


def test_truncated_parquet_is_named(tmp_path: Path) -> None:
    file = parquet(tmp_path / "in.parquet")
    file.write_bytes(file.read_bytes()[:-50])
    refused(tmp_path, r"in\.parquet: damaged, or not what it should be", "parquet", file)
    damaged = parquet(tmp_path / "damaged.parquet")
    content = bytearray(damaged.read_bytes())
    content[4:300] = bytes(296)
    damaged.write_bytes(content)
    refused(tmp_path, r"damaged\.parquet", "parquet", damaged)


def npz(file: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(file, **arrays)
    return file


GREY = np.random.default_rng(0).integers(0, 256, (9, 3, 4), dtype=np.uint8)
LABELS = np.array([0, 1, 2] * 3, dtype=np.int64)


def test_an_npz_archive_gives_its_arrays(tmp_path: Path) -> None:
    split = np.array(["train"] * 6 + ["test"] * 3)
    arrays = {"images": GREY, "labels": LABELS, "split": split, "subjects": np.array(list("abcabcabc"))}
    file = npz(tmp_path / "in.npz", **arrays, class_names=np.array(["x", "y", "z"]))
    dataset = prepared(tmp_path, "npz", path=file)
    np.testing.assert_array_equal(dataset.images(), GREY[..., None])
    assert dataset.labels().tolist() == LABELS.tolist()
    assert dataset.class_names == ["x", "y", "z"]
    assert dataset.splits().tolist() == split.tolist()
    assert dataset.table(["subject"])["subject"].to_pylist() == list("abcabcabc")
    assert dataset.sample_ids() == [str(i) for i in range(9)]


def test_an_npz_archive_may_have_train_and_test_arrays(tmp_path: Path) -> None:
    colour = np.stack([GREY] * 3, axis=-1)
    file = npz(tmp_path / "in.npz", x_train=colour[:5], y_train=LABELS[:5], x_test=colour[5:], y_test=LABELS[5:])
    dataset = prepared(tmp_path, "npz", path=file)
    np.testing.assert_array_equal(dataset.images(), colour)
    assert dataset.splits().tolist() == ["train"] * 5 + ["test"] * 4


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": GREY}, "exactly one array y or labels; it holds x"),
        ({"x": GREY, "images": GREY, "y": LABELS}, "exactly one array x or images"),
        ({"x": GREY / 255, "y": LABELS}, "images have the type float64; store them as uint8"),
        ({"x": np.stack([GREY] * 4, -1), "y": LABELS}, r"images have the shape \(9, 3, 4, 4\)"),
        ({"x": GREY, "y": LABELS[:5]}, "labels has 5 rows, but there are 9 images"),
        ({"x": GREY, "y": LABELS, "ids": np.arange(3)}, "ids has 3 rows"),
        ({"x": GREY, "y": LABELS - 1}, "row 0 has label -1"),
        ({"x": GREY, "y": LABELS / 2}, "labels have the type float64"),
        ({"x": GREY, "y": LABELS, "class_names": np.array(["only", "two"])}, "label 2, which is outside 0 to 1"),
        ({"x": GREY, "y": LABELS, "weights": LABELS}, "unknown array 'weights'"),
        ({"x_train": GREY, "y_train": LABELS}, "array x_test"),
        ({"x": GREY, "y": np.array([{"a": 1}] * 9, dtype=object)}, "without pickled objects"),
    ],
)
def test_bad_npz_archives_are_refused(tmp_path: Path, arrays: dict, message: str) -> None:
    refused(tmp_path, message, "npz", npz(tmp_path / "in.npz", **arrays))


def test_a_file_that_is_no_npz_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.npz").write_bytes(b"PK and nothing else")
    refused(tmp_path, r"in\.npz: not a readable \.npz", "npz", tmp_path / "in.npz")
    np.save(tmp_path / "one.npy", GREY)
    refused(tmp_path, "a single array", "npz", tmp_path / "one.npy")
