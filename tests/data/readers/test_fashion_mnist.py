"""Fashion-MNIST is read from a directory or fetched over HTTP, and damaged or missing files are refused."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from expunge.data.readers import fashion_mnist
from expunge.system.errors import DataError
from tests.data.sources import prepared, refused


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Return small files of the published layout, and replace the published checksums by theirs."""
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


def test_files_in_a_directory_are_read(tmp_path: Path, idx_files: dict[str, bytes]) -> None:
    path = store(tmp_path / "files", idx_files)
    dataset = prepared(tmp_path, "fashion-mnist", path=path)
    assert (dataset.manifest["rows_train"], dataset.manifest["rows_test"]) == (40, 20)
    assert dataset.sample_ids()[39:41] == ["train-00039", "test-00000"]
    assert dataset.class_names[5] == "Sandal"
    pixels = np.frombuffer(idx_files["t10k-images-idx3-ubyte.gz"][16:], np.uint8).reshape(-1, 28, 28, 1)
    np.testing.assert_array_equal(dataset.images(np.arange(40, 60)), pixels)
    assert dataset.labels().tolist() == [i % 10 for i in range(40)] + [i % 10 for i in range(20)]


def test_damaged_and_missing_files_are_refused(tmp_path: Path, idx_files: dict[str, bytes]) -> None:
    path = store(tmp_path / "files", idx_files)
    labels = path / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(np.zeros(20))))
    refused(tmp_path, r"t10k-labels-idx1-ubyte\.gz: content has sha256", "fashion-mnist", path)
    labels.write_bytes(gzip.compress(idx(np.zeros(20)))[:-6])
    refused(tmp_path, r"t10k-labels-idx1-ubyte\.gz: is not a complete gzip file", "fashion-mnist", path)
    labels.unlink()
    refused(tmp_path, r"t10k-labels-idx1-ubyte\.gz: no such file", "fashion-mnist", path)


def test_the_official_files_are_fetched_over_http(tmp_path: Path, idx_files: dict[str, bytes]) -> None:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=store(tmp_path / "www", idx_files))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}/"
        (tmp_path / "work").mkdir()
        found = fashion_mnist.fetch_official(tmp_path / "work", (base + "elsewhere/", base))
        server.shutdown()
    for name, content in idx_files.items():
        assert gzip.decompress((found / name).read_bytes()) == content


def test_fetched_files_are_used_again(tmp_path: Path, idx_files: dict[str, bytes]) -> None:
    fetched = store(tmp_path / "raw" / "fashion-mnist", idx_files)
    assert fashion_mnist.locate(tmp_path / "raw") == fetched


def test_without_any_source_the_error_says_how_to_get_the_files(
    tmp_path: Path, idx_files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "PACKAGE", "dataset-of-no-such-name")
    monkeypatch.setattr(fashion_mnist.fetch_official, "__defaults__", (("http://127.0.0.1:9/",),))
    with pytest.raises(DataError, match="Install the Debian package") as e:
        fashion_mnist.locate(tmp_path / "raw")
    assert "fetch_package" in str(e.value) and "http://127.0.0.1:9/train-images" in str(e.value)
    assert list((tmp_path / "raw").iterdir()) == []


def published(tmp_path: Path) -> Path | None:
    """Return a directory with the published files, or None if the Debian package cannot be had here."""
    if all((fashion_mnist.INSTALLED / name).is_file() for name in fashion_mnist.SHA256):
        return fashion_mnist.INSTALLED
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return None
    try:
        return fashion_mnist.fetch_package(tmp_path)
    except (DataError, OSError, subprocess.SubprocessError):
        return None


@pytest.mark.slow
def test_the_published_data_have_the_expected_rows(tmp_path: Path) -> None:
    path = published(tmp_path)
    if path is None:
        pytest.skip("neither the Debian package nor a way to fetch it")
    dataset = prepared(tmp_path, "fashion-mnist", path=path)
    assert (dataset.manifest["rows_train"], dataset.manifest["rows_test"]) == (60_000, 10_000)
    assert np.bincount(dataset.labels()).tolist() == [7000] * 10
    assert dataset.image_shape == (28, 28, 1)
    assert len(set(map(bytes, dataset.images()))) == 70_000 - dataset.manifest["duplicates"]["rows"]
