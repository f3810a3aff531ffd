from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import shutil
import subprocess
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.data.readers import fashion_mnist
from expunge.data.source import stratified_test_rows
from expunge.errors import DataError


def png(seed: int, shape: tuple[int, ...] = (4, 5, 3)) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def prepared(tmp_path: Path, source: str, **options) -> Dataset:
    prepare(source, tmp_path / "dataset", **options)
    return Dataset(tmp_path / "dataset")


def refused(tmp_path: Path, message: str, source: str, path: Path | None) -> None:
    with pytest.raises(DataError, match=message):
        prepare(source, tmp_path / "dataset", path=path)
    assert not (tmp_path / "dataset").exists()


def test_stratified_rows() -> None:
    labels = np.array([0] * 10 + [1] * 3 + [2])
    mask = stratified_test_rows(labels, 0.2, 0)
    assert Counter(labels[mask].tolist()) == {0: 2, 1: 1}
    np.testing.assert_array_equal(mask, stratified_test_rows(labels, 0.2, 0))
    assert any((stratified_test_rows(labels, 0.2, s) != mask).any() for s in range(1, 4))
    assert Counter(labels[stratified_test_rows(labels, 0.99, 0)].tolist()) == {0: 9, 1: 2}
    with pytest.raises(DataError, match="test_fraction is 1"):
        stratified_test_rows(labels, 1, 0)


def test_digits(tmp_path: Path) -> None:
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


def test_image_folder(tmp_path: Path) -> None:
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


def test_image_folder_with_its_own_split(tmp_path: Path) -> None:
    names = [f"train/a/{i}.png" for i in range(3)] + ["train/b/0.png", "test/a/0.png"]
    dataset = prepared(tmp_path, "image-folder", path=folder(tmp_path / "in", names))
    assert dataset.sample_ids() == names
    assert dataset.splits().tolist() == ["train"] * 4 + ["test"]
    assert dataset.labels().tolist() == [0, 0, 0, 1, 0]


def test_bad_image_folders(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", [f"a/{i}.png" for i in range(4)])
    (root / "a" / "2.png").write_bytes(png(0)[:-20])
    refused(tmp_path, r"a/2\.png: not a readable image", "image-folder", root)
    (root / "a" / "2.png").unlink()
    (root / "notes.txt").write_text("x")
    refused(tmp_path, r"notes\.txt: not an image", "image-folder", root)
    (root / "notes.txt").rename(root / "loose.png")
    refused(tmp_path, r"loose\.png: lies in no class folder", "image-folder", root)
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "no images", "image-folder", tmp_path / "empty")
    refused(tmp_path, "not a directory", "image-folder", root / "loose.png")
    refused(tmp_path, "no such file or directory", "image-folder", tmp_path / "nowhere")
    refused(tmp_path, "needs a path", "image-folder", None)
    refused(tmp_path, "unknown data source 'coco'", "coco", root)
    mixed = folder(tmp_path / "mixed", ["train/a/0.png", "test/a/0.png", "b/0.png"])
    refused(tmp_path, r"b: beside train/ and test/", "image-folder", mixed)


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


def test_parquet(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, "parquet", path=parquet(tmp_path / "in.parquet"))
    table = dataset.table(["sample_id", "subject", "label", "split", "image"]).to_pydict()
    given = rows()
    assert dataset.class_names == ["ape", "zebra"]
    assert table["label"] == [0, 1] * 4
    assert (table["sample_id"], table["subject"]) == (given["id"], given["subject"])
    assert (table["split"], table["image"]) == (given["split"], given["image"])


def test_parquet_directory_with_integer_labels_and_image_structs(tmp_path: Path) -> None:
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
        ({"label": [0, 1, -1, 0, 0, 0, 0, 0]}, "label -1 of row 2 is out of range"),
        ({"label": [0, 1, None, 0, 0, 0, 0, 0]}, "row 2 has no label"),
        ({"label": [0.5] * 8}, "column 'label' is double"),
        ({"image": [png(0)] * 7 + [None]}, "row 7 has no image"),
        ({"image": [png(0)] * 4 + [b"junk"] * 4}, "x4: not a readable image"),
        ({"id": ["a"] * 8}, "1 sample ids occur"),
        ({"split": ["train"] * 7 + ["dev"]}, "split 'dev' is neither"),
    ],
)
def test_bad_parquet(tmp_path: Path, changes: dict, message: str) -> None:
    refused(tmp_path, message, "parquet", parquet(tmp_path / "in.parquet", **changes))


def test_truncated_parquet_is_named(tmp_path: Path) -> None:
    file = parquet(tmp_path / "in.parquet")
    file.write_bytes(file.read_bytes()[:-50])
    refused(tmp_path, r"in\.parquet: not a whole Parquet file", "parquet", file)
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


def test_npz(tmp_path: Path) -> None:
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


def test_npz_with_train_and_test_arrays(tmp_path: Path) -> None:
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
        ({"x": GREY / 255, "y": LABELS}, "images are float64; store them as uint8"),
        ({"x": np.stack([GREY] * 4, -1), "y": LABELS}, r"images are \(9, 3, 4, 4\)"),
        ({"x": GREY, "y": LABELS[:5]}, "labels has 5 rows, the images 9"),
        ({"x": GREY, "y": LABELS, "ids": np.arange(3)}, "ids has 3 rows"),
        ({"x": GREY, "y": LABELS - 1}, "label -1 of row 0"),
        ({"x": GREY, "y": LABELS / 2}, "labels are float64"),
        ({"x": GREY, "y": LABELS, "class_names": np.array(["only", "two"])}, "label 2, outside 0 to 1"),
        ({"x": GREY, "y": LABELS, "weights": LABELS}, "unknown array 'weights'"),
        ({"x_train": GREY, "y_train": LABELS}, "array x_test"),
        ({"x": GREY, "y": np.array([{"a": 1}] * 9, dtype=object)}, "without pickled objects"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict, message: str) -> None:
    refused(tmp_path, message, "npz", npz(tmp_path / "in.npz", **arrays))


def test_a_file_that_is_no_npz(tmp_path: Path) -> None:
    (tmp_path / "in.npz").write_bytes(b"PK and nothing else")
    refused(tmp_path, r"in\.npz: not a readable \.npz", "npz", tmp_path / "in.npz")
    np.save(tmp_path / "one.npy", GREY)
    refused(tmp_path, "a single array", "npz", tmp_path / "one.npy")


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Small files of the published layout, whose checksums stand in for the published ones."""
    rng = np.random.default_rng(0)
    files = {}
    for stem, n in (("train", 40), ("t10k", 20)):
        files[f"{stem}-images-idx3-ubyte.gz"] = idx(rng.integers(0, 256, (n, 28, 28)))
        files[f"{stem}-labels-idx1-ubyte.gz"] = idx(np.arange(n) % 10)
    monkeypatch.setattr(fashion_mnist, "SHA256", {n: hashlib.sha256(c).hexdigest() for n, c in files.items()})
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "not-installed")
    return files


def store(directory: Path, files: dict[str, bytes]) -> Path:
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_bytes(gzip.compress(content))
    return directory


def test_fashion_mnist_from_a_directory(tmp_path: Path, idx_files: dict[str, bytes]) -> None:
    path = store(tmp_path / "files", idx_files)
    dataset = prepared(tmp_path, "fashion-mnist", path=path)
    assert (dataset.manifest["rows_train"], dataset.manifest["rows_test"]) == (40, 20)
    assert dataset.sample_ids()[39:41] == ["train-00039", "test-00000"]
    assert dataset.class_names[5] == "Sandal"
    pixels = np.frombuffer(idx_files["t10k-images-idx3-ubyte.gz"][16:], np.uint8).reshape(-1, 28, 28, 1)
    np.testing.assert_array_equal(dataset.images(np.arange(40, 60)), pixels)
    assert dataset.labels().tolist() == [i % 10 for i in range(40)] + [i % 10 for i in range(20)]


def test_fashion_mnist_files_are_checked(tmp_path: Path, idx_files: dict[str, bytes]) -> None:
    path = store(tmp_path / "files", idx_files)
    labels = path / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(np.zeros(20))))
    refused(tmp_path, r"t10k-labels-idx1-ubyte\.gz: content has sha256", "fashion-mnist", path)
    labels.write_bytes(gzip.compress(idx(np.zeros(20)))[:-6])
    refused(tmp_path, r"t10k-labels-idx1-ubyte\.gz: not a complete gzip file", "fashion-mnist", path)
    labels.unlink()
    refused(tmp_path, r"t10k-labels-idx1-ubyte\.gz: no such file", "fashion-mnist", path)


def test_fashion_mnist_official_files_over_http(tmp_path: Path, idx_files: dict[str, bytes]) -> None:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=store(tmp_path / "www", idx_files))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}/"
        (tmp_path / "work").mkdir()
        found = fashion_mnist.fetch_official(tmp_path / "work", (base + "elsewhere/", base))
        server.shutdown()
    for name, content in idx_files.items():
        assert gzip.decompress((found / name).read_bytes()) == content


def test_fashion_mnist_fetched_files_are_used_again(tmp_path: Path, idx_files: dict[str, bytes]) -> None:
    fetched = store(tmp_path / "raw" / "fashion-mnist", idx_files)
    assert fashion_mnist.locate(tmp_path / "raw") == fetched


def test_fashion_mnist_out_of_reach(tmp_path: Path, idx_files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "PACKAGE", "dataset-of-no-such-name")
    monkeypatch.setattr(fashion_mnist.fetch_official, "__defaults__", (("http://127.0.0.1:9/",),))
    with pytest.raises(DataError, match="Install the Debian package") as e:
        fashion_mnist.locate(tmp_path / "raw")
    assert "fetch_package" in str(e.value) and "http://127.0.0.1:9/train-images" in str(e.value)
    assert list((tmp_path / "raw").iterdir()) == []


def published(tmp_path: Path) -> Path | None:
    """A directory with the published files, where this machine has or can unpack the Debian package."""
    if all((fashion_mnist.INSTALLED / name).is_file() for name in fashion_mnist.SHA256):
        return fashion_mnist.INSTALLED
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return None
    try:
        return fashion_mnist.fetch_package(tmp_path)
    except (DataError, OSError, subprocess.SubprocessError):
        return None


@pytest.mark.slow
def test_the_published_fashion_mnist(tmp_path: Path) -> None:
    path = published(tmp_path)
    if path is None:
        pytest.skip("neither the Debian package nor a way to fetch it")
    dataset = prepared(tmp_path, "fashion-mnist", path=path)
    assert (dataset.manifest["rows_train"], dataset.manifest["rows_test"]) == (60_000, 10_000)
    assert np.bincount(dataset.labels()).tolist() == [7000] * 10
    assert dataset.image_shape == (28, 28, 1)
    assert len(set(map(bytes, dataset.images()))) == 70_000 - dataset.manifest["duplicates"]["rows"]
