"""Data sets are read by name from small files in their real formats, and faulty files are refused with the reason."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import importlib.util
import io
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from expunge.data.readers import cifar, idx, imagenet, listed, stl10, svhn
from expunge.data.readers.archives import Published
from expunge.system.vision_imports import import_vision
from tests.data.readers import published as made
from tests.data.readers.reading import read, refused


def packed(folder: Path, out: Path) -> bytes:
    """Return the archive of a directory, packed as its publisher does it."""
    if out.suffix == ".zip":
        with zipfile.ZipFile(out, "w") as z:
            for file in sorted(f for f in folder.rglob("*") if f.is_file()):
                z.write(file, file.relative_to(folder.parent))
    else:
        with tarfile.open(out, "w:gz") as tar:
            tar.add(folder, folder.name)
    return out.read_bytes()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@contextmanager
def served(directory: Path) -> Iterator[str]:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=directory)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_cifar10_records_are_read(tmp_path: Path) -> None:
    images, labels = made.pictures(24, 32), np.arange(24) % 10
    made.cifar10(tmp_path / "root", images, labels)
    dataset = read(tmp_path, "CIFAR10", tmp_path / "root")
    assert (dataset.manifest["rows_train"], dataset.manifest["rows_test"]) == (20, 4)
    np.testing.assert_array_equal(dataset.images(), images)
    assert dataset.labels().tolist() == labels.tolist()
    assert dataset.class_names == list(made.CIFAR10_NAMES)
    assert dataset.sample_ids()[19:21] == ["train-00019", "test-00000"]


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    made.cifar10(tmp_path / "root", made.pictures(24, 32), np.arange(24) % 10)
    first = read(tmp_path, "CIFAR10", tmp_path / "root").digest
    (tmp_path / "other").mkdir()
    assert read(tmp_path / "other", "CIFAR10", tmp_path / "root" / "cifar-10-batches-bin").digest == first


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    images, fine = made.pictures(12, 32), np.arange(12) * 9
    made.cifar100(tmp_path / "root", images, fine, n_test=4)
    dataset = read(tmp_path, "CIFAR100", tmp_path / "root")
    assert dataset.labels().tolist() == [*fine[4:].tolist(), *fine[:4].tolist()]
    np.testing.assert_array_equal(dataset.images(np.arange(8, 12)), images[:4])
    assert dataset.class_names[99] == "class-99"


def test_damaged_and_missing_cifar_files_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = made.cifar10(tmp_path / "root", made.pictures(24, 32), np.arange(24) % 10)
    third = folder / "data_batch_3.bin"
    whole = third.read_bytes()
    third.write_bytes(whole[:-1])
    refused(
        tmp_path,
        "CIFAR10",
        tmp_path / "root",
        r"data_batch_3\.bin: has 12291 bytes, which is not a multiple of the record size 3073",
    )
    third.write_bytes(whole[:3073] + b"\x0a" + whole[3074:])
    refused(tmp_path, "CIFAR10", tmp_path / "root", r"data_batch_3\.bin: record 1 has label 10")
    third.unlink()
    refused(tmp_path, "CIFAR10", tmp_path / "root", r"data_batch_3\.bin: no such file")
    third.write_bytes(whole[:3073])
    assert read(tmp_path, "CIFAR10", tmp_path / "root").manifest["rows_train"] == 17
    assert "has 17 train rows, but the published data set has 50000" in caplog.text


def test_wrong_roots_and_names(tmp_path: Path) -> None:
    refused(tmp_path, "CIFAR10", tmp_path / "absent", r"absent: no such directory; correct data\.root")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "CIFAR10", tmp_path / "empty", "holds neither cifar-10-batches-bin/ nor cifar-10-binary.tar.gz")
    for name, message in {
        "MNIST": "holds neither train-images-idx3-ubyte nor",
        "SVHN": r"train_32x32\.mat: no such file; set data.root",
        "STL10": "holds neither stl10_binary/ nor",
        "TinyImageNet": "holds neither tiny-imagenet-200/ nor",
        "ImageNet": "no directory train/",
        "Food101": "holds neither food-101/ nor",
        "Flowers102": "flowers-102: holds neither jpg/ nor",
        "CIFAR": r"no reader for 'torchvision:CIFAR'; did you mean torchvision:CIFAR10\?",
        "CelebA": "no reader for 'torchvision:CelebA'; the known data sets are CIFAR10, ",
        "LSUN": "torchvision loads a pickle to read LSUN, and no pickle is ever loaded",
    }.items():
        refused(tmp_path, name, tmp_path / "empty", message)
    refused(tmp_path, "ImageNet", tmp_path / "empty", "ImageNet cannot be downloaded", download=True)


def test_the_pickled_version_is_refused_and_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps(Trap()))
    refused(tmp_path, "CIFAR10", tmp_path / "root", r"cifar-10-batches-py: the python version is a pickle.*binary")
    assert not (tmp_path / "executed").exists()


def test_archives_are_checked_unpacked_and_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = made.pictures(24, 32)
    folder = made.cifar10(tmp_path / "made", images, np.arange(24) % 10)
    (tmp_path / "www").mkdir()
    archive = packed(folder, tmp_path / "www" / "cifar-10-binary.tar.gz")
    root = tmp_path / "root"
    with served(tmp_path / "www") as base:
        wanted = Published("cifar-10-binary.tar.gz", md5(archive), (base + "gone.gz", base + "cifar-10-binary.tar.gz"))
        monkeypatch.setattr(cifar, "CIFAR10", replace(cifar.CIFAR10, archive=wanted))
        monkeypatch.setattr("expunge.data.readers.named.CIFAR10", cifar.CIFAR10)
        root.mkdir()
        (root / wanted.name).write_bytes(archive[: len(archive) // 2])
        refused(tmp_path, "CIFAR10", root, r"cifar-10-binary\.tar\.gz: has the MD5 .* the published file has")
        refused(tmp_path, "CIFAR10", root, r"cifar-10-binary\.tar\.gz: has the MD5", download=True)
        assert [f.name for f in root.iterdir()] == [wanted.name]
        (root / wanted.name).unlink()
        dataset = read(tmp_path, "CIFAR10", root, download=True)
        np.testing.assert_array_equal(dataset.images(), images)
        assert sorted(f.name for f in root.iterdir()) == ["cifar-10-batches-bin", wanted.name]
        (tmp_path / "www" / wanted.name).write_bytes(archive[:-9])
        (tmp_path / "second").mkdir()
        refused(tmp_path / "second", "CIFAR10", tmp_path / "fresh", "could not be fetched .*has the MD5", download=True)
        assert list((tmp_path / "fresh").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("../escaped", tarfile.REGTYPE, "escaped leads outside"),
        ("{tmp_path}/escaped", tarfile.REGTYPE, "escaped leads outside"),
        ("stl10_binary/link", tarfile.SYMTYPE, "link is neither a file nor a directory"),
        ("stl10_binary/link", tarfile.LNKTYPE, "link is neither a file nor a directory"),
    ],
)
def test_an_archive_that_reaches_outside_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: bytes, why: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / "stl10_binary.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo(name.format(tmp_path=tmp_path))
        info.type, info.linkname = kind, "../../escaped"
        info.size = 4 if kind == tarfile.REGTYPE else 0
        tar.addfile(info, io.BytesIO(b"evil"))
    found = md5((root / "stl10_binary.tar.gz").read_bytes())
    monkeypatch.setattr(stl10, "ARCHIVE", replace(stl10.ARCHIVE, md5=found))
    refused(tmp_path, "STL10", root, f"cannot be unpacked .*{why}")
    assert not (tmp_path / "escaped").exists() and [f.name for f in root.iterdir()] == ["stl10_binary.tar.gz"]


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_idx_files_are_read(tmp_path: Path, name: str) -> None:
    images, labels = made.pictures(15, 28, 1)[..., 0], np.arange(15) % 10
    made.mnist(tmp_path / "root", (images[:10], labels[:10]), (images[10:], labels[10:]), name)
    dataset = read(tmp_path, name, tmp_path / "root")
    np.testing.assert_array_equal(dataset.images()[..., 0], images)
    assert dataset.labels().tolist() == labels.tolist()
    assert dataset.sample_ids()[9:11] == ["train-00009", "test-00000"]


def test_damaged_idx_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = made.pictures(15, 28, 1)[..., 0], np.arange(15) % 10
    raw = made.mnist(tmp_path / "root", (images[:10], labels[:10]), (images[10:], labels[10:]))
    packed_file, plain = raw / "train-images-idx3-ubyte.gz", raw / "t10k-labels-idx1-ubyte"
    whole = packed_file.read_bytes()
    packed_file.write_bytes(whole[:-20])
    refused(tmp_path, "MNIST", tmp_path / "root", r"train-images-idx3-ubyte\.gz: is not a complete file")
    packed_file.write_bytes(gzip.compress(made.idx(images[:10])[:-5]))
    refused(tmp_path, "MNIST", tmp_path / "root", r"has 7835 bytes, which does not fit its shape \(10, 28, 28\)")
    packed_file.write_bytes(whole)
    plain.write_bytes(made.idx(labels[10:])[:2] + b"\x0d" + made.idx(labels[10:])[3:])
    refused(tmp_path, "MNIST", tmp_path / "root", r"t10k-labels-idx1-ubyte: is not an IDX file of bytes")
    plain.write_bytes(made.idx(labels[:4]))
    refused(tmp_path, "MNIST", tmp_path / "root", "5 test images, but 4 labels")
    plain.unlink()
    content = gzip.compress(made.idx(labels[10:]))
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "t10k-labels-idx1-ubyte.gz").write_bytes(content)
    with served(tmp_path / "www") as base:
        monkeypatch.setattr("expunge.data.readers.named.MNIST", replace(idx.MNIST, mirrors=(base,)))
        refused(
            tmp_path,
            "MNIST",
            tmp_path / "root",
            "the published file has ec29112dd5afa0611ce80d1b7f02629c",
            download=True,
        )
        right = replace(idx.MNIST, mirrors=(base,), md5=(*idx.MNIST.md5[:3], md5(content)))
        monkeypatch.setattr("expunge.data.readers.named.MNIST", right)
        assert read(tmp_path, "MNIST", tmp_path / "root", download=True).manifest["rows_test"] == 5


def test_svhn_is_read_and_bad_files_are_refused(tmp_path: Path) -> None:
    images, digits = made.pictures(15, 32), np.arange(15) % 10
    made.svhn(tmp_path / "root", "train", images[:11], digits[:11])
    file = made.svhn(tmp_path / "root", "test", images[11:], digits[11:])
    dataset = read(tmp_path, "SVHN", tmp_path / "root")
    np.testing.assert_array_equal(dataset.images(), images)
    assert dataset.labels().tolist() == digits.tolist()
    second = tmp_path / "second"
    second.mkdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(second, "SVHN", tmp_path / "root", r"test_32x32\.mat: is not a complete MATLAB file")
    made.svhn(tmp_path / "root", "test", images[11:], np.array([1, 2, 11, 3]))
    refused(second, "SVHN", tmp_path / "root", r"test_32x32\.mat: row 2 has label 11")
    made.savemat(file, {"X": images[11:].transpose(1, 2, 3, 0)})
    refused(second, "SVHN", tmp_path / "root", r"test_32x32\.mat: holds no integer array 'y'")
    assert svhn.FILES["train"].urls[0].endswith("train_32x32.mat")


def test_stl10_is_read_and_bad_files_are_refused(tmp_path: Path) -> None:
    images, labels = made.pictures(7, 96), np.arange(7)
    made.stl10(tmp_path / "root", "train", images[:5], labels[:5])
    folder = made.stl10(tmp_path / "root", "test", images[5:], labels[5:])
    dataset = read(tmp_path, "STL10", tmp_path / "root")
    np.testing.assert_array_equal(dataset.images(), images)
    assert dataset.labels().tolist() == labels.tolist()
    second = tmp_path / "second"
    second.mkdir()
    pixels = folder / "test_X.bin"
    pixels.write_bytes(pixels.read_bytes()[:-1])
    refused(second, "STL10", tmp_path / "root", r"test_X\.bin: has 55295 bytes for 2 labels")


def test_tiny_imagenet_is_read_and_bad_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, grey = made.pictures(8, 64), made.pictures(1, 64, 1, seed=1)[0]
    folder = made.tiny_imagenet(tmp_path / "root", images, grey)
    dataset = read(tmp_path, "TinyImageNet", tmp_path / "root")
    assert dataset.class_names == ["n01443537", "n02124075", "n04067472"]
    assert dataset.labels().tolist() == [0, 0, 1, 1, 2, 2, 1, 0, 2]
    assert (dataset.manifest["rows_train"], dataset.manifest["rows_test"]) == (6, 3)
    got = dataset.images()
    np.testing.assert_array_equal(got[[2, 3, 0, 1, 4, 5, 6, 7]], images)
    np.testing.assert_array_equal(got[8], np.repeat(grey, 3, axis=2))
    assert dataset.sample_ids()[0] == "train/n01443537/images/n01443537_0.JPEG"
    assert dataset.sample_ids()[6] == "val/images/val_0.JPEG"
    # The archive must give the same dataset, and annotations of an unknown class must be refused.
    archive = packed(folder, tmp_path / "tiny-imagenet-200.zip")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "tiny-imagenet-200.zip").write_bytes(archive)
    monkeypatch.setattr(imagenet, "TINY", replace(imagenet.TINY, md5=md5(archive)))
    assert read(tmp_path / "second", "TinyImageNet", tmp_path / "second").digest == dataset.digest
    third = tmp_path / "third"
    third.mkdir()
    annotations = folder / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text().replace("n04067472", "n99999999"))
    refused(third, "TinyImageNet", tmp_path / "root", r"val_annotations\.txt: 'n99999999' is not one of the 3 classes")
    annotations.write_text("val_0.JPEG n02124075\n")
    refused(third, "TinyImageNet", tmp_path / "root", "line 1 has no tab")
    annotations.unlink()
    refused(third, "TinyImageNet", tmp_path / "root", "'images' is not one of the 3 classes")


def test_imagenet_is_read_from_folders_and_from_kaggles_answers(tmp_path: Path) -> None:
    root = made.imagenet(tmp_path / "root", made.pictures(8, 20))
    dataset = read(tmp_path, "ImageNet", root)
    assert dataset.class_names == ["n01440764", "n01443537"]
    labels = dataset.labels().tolist()
    assert labels == [0, 0, 1, 1] * 2 and dataset.manifest["rows_test"] == 4
    # Where the validation pictures lie in one folder, Kaggle's answers must give the same labels.
    answers = ["ImageId,PredictionString"]
    for file in sorted((root / "val").rglob("*.JPEG")):
        answers.append(f"{file.stem},{file.parent.name} 1 2 30 40 ")
        file.rename(root / "val" / file.name)
    second = tmp_path / "second"
    second.mkdir()
    for wnid in dataset.class_names:
        (root / "val" / wnid).rmdir()
    refused(second, "ImageNet", root, "are not in class folders; sort them into val/WNID/")
    (root / "LOC_val_solution.csv").write_text("\n".join(answers) + "\n")
    flat = read(second, "ImageNet", root)
    assert flat.labels().tolist()[4:] == [0, 1, 0, 1]
    assert flat.sample_ids()[4] == "val/ILSVRC2012_val_00000004.JPEG"


def test_food101_and_flowers102_are_read_and_bad_files_are_refused(tmp_path: Path) -> None:
    images = made.pictures(8, 16)
    food = made.food101(tmp_path / "root", images)
    dataset = read(tmp_path, "Food101", tmp_path / "root")
    assert dataset.class_names == ["apple_pie", "waffles"]
    assert dataset.sample_ids()[:3] == [f"images/{p}.jpg" for p in ("apple_pie/1001", "apple_pie/1003", "waffles/1000")]
    assert dataset.labels().tolist() == [0, 0, 1, 1] * 2
    made.flowers102(tmp_path / "root", images)
    second = tmp_path / "second"
    second.mkdir()
    flowers = read(second, "Flowers102", tmp_path / "root")
    assert flowers.sample_ids() == [f"jpg/image_{i:05d}.jpg" for i in (5, 6, 7, 8, 1, 2, 3, 4)]
    assert [flowers.class_names[c] for c in flowers.labels()] == ["96", "95", "94", "93", "100", "99", "98", "97"]
    assert (flowers.manifest["rows_train"], flowers.manifest["rows_test"]) == (4, 4)
    third = tmp_path / "third"
    third.mkdir()
    (food / "images" / "waffles" / "1004.jpg").unlink()
    refused(third, "Food101", tmp_path / "root", r"1004\.jpg: cannot be read")
    (food / "meta" / "test.json").write_text('{"waffles": ["../../../secret"]}')
    refused(third, "Food101", tmp_path / "root", "is outside the data set")
    (food / "meta" / "test.json").write_text('{"waffles": ["waffles/10')
    refused(third, "Food101", tmp_path / "root", r"test\.json: cannot be read as JSON")
    assert listed.FOOD.urls[0].endswith("food-101.tar.gz")


def torchvision_datasets() -> ModuleType:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    return import_vision("torchvision.datasets")


def test_checksums_are_those_of_torchvision() -> None:
    """torchvision has an independent list of the same published files."""
    tv = torchvision_datasets()
    for ours, theirs in ((idx.MNIST, tv.MNIST), (idx.FASHION_MNIST, tv.FashionMNIST), (idx.KMNIST, tv.KMNIST)):
        assert [m for _, m in theirs.resources] == list(ours.md5)
    assert {s: f.md5 for s, f in svhn.FILES.items()} == {s: tv.SVHN.split_list[s][2] for s in ("train", "test")}
    assert stl10.ARCHIVE.md5 == tv.STL10.tgz_md5
    assert listed.FOOD.md5 == tv.Food101._MD5
    flowers = (listed.FLOWERS, listed.FLOWER_LABELS, listed.FLOWER_SETS)
    assert [(f.name, f.md5) for f in flowers] == list(tv.Flowers102._file_dict.values())


def test_torchvision_reads_the_same_pictures_from_the_same_files(tmp_path: Path) -> None:
    """The test covers the formats that torchvision reads without unpickling."""
    tv = torchvision_datasets()
    images, labels = made.pictures(15, 28, 1)[..., 0], np.arange(15) % 10
    made.mnist(tmp_path / "root", (images[:10], labels[:10]), (images[10:], labels[10:]))
    for file in (tmp_path / "root" / "MNIST" / "raw").glob("*.gz"):
        (file.parent / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    theirs = [np.asarray(x) for split in (True, False) for x, _ in tv.MNIST(tmp_path / "root", train=split)]
    np.testing.assert_array_equal(read(tmp_path, "MNIST", tmp_path / "root").images()[..., 0], theirs)
    (tmp_path / "food").mkdir()
    made.food101(tmp_path / "root", made.pictures(8, 16))
    food = tv.Food101(tmp_path / "root", split="test")
    ours = read(tmp_path / "food", "Food101", tmp_path / "root")
    got = dict(zip(ours.sample_ids(), zip(ours.images(), ours.labels(), strict=True), strict=True))
    for file, (image, label) in zip(food._image_files, food, strict=True):
        pixels, own = got[file.relative_to(tmp_path / "root" / "food-101").as_posix()]
        np.testing.assert_array_equal(pixels, np.asarray(image))
        assert own == label
