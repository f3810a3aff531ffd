"""Data sets that torchvision's own classes read, from small files in their formats."""

from __future__ import annotations

import bz2
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from expunge.data.readers.named import NAMED, WITHOUT_DOWNLOAD
from expunge.data.readers.torchvision_classes import CLASSES
from expunge.system.errors import DataError
from expunge.system.vision_imports import import_vision
from tests.data.readers.published import encoded, pictures
from tests.data.readers.reading import read, refused
from tests.data.readers.test_named import md5, served

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed", allow_module_level=True)


def usps(images: np.ndarray, digits: np.ndarray) -> bytes:
    """Return the lines of USPS, compressed: a label from 1 to 10, then 256 values in [-1, 1] with their numbers."""
    lines = [
        f"{digit + 1} " + " ".join(f"{i + 1}:{2 * v / 255 - 1:.6f}" for i, v in enumerate(image.reshape(-1).tolist()))
        for image, digit in zip(images, digits.tolist(), strict=True)
    ]
    return bz2.compress(("\n".join(lines) + "\n").encode())


def dtd(root: Path, images: np.ndarray) -> None:
    """Write textures of two classes: two images in each of the lists train, val and test."""
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for s, split in enumerate(("train", "val", "test")):
        listed = []
        for c, name in enumerate(("zigzagged", "banded")):
            (folder / "images" / name).mkdir(parents=True, exist_ok=True)
            (folder / "images" / name / f"{name}_{s}.jpg").write_bytes(encoded(images[2 * s + c]))
            listed.append(f"{name}/{name}_{s}.jpg")
        (folder / "labels" / f"{split}1.txt").write_text("\n".join(listed) + "\n")


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_takes_the_arguments_of_its_splits(name: str, tmp_path: Path) -> None:
    """Without files, each class says that they are missing, and none complains about an argument."""
    (tmp_path / "root").mkdir()
    refused(tmp_path, name, tmp_path / "root", f"root: {name} cannot be read")
    with pytest.raises(DataError) as e:
        read(tmp_path, name, tmp_path / "root")
    assert "argument" not in str(e.value) and "Unknown value" not in str(e.value)


def test_no_class_that_loads_pickles_is_read_through_torchvision() -> None:
    assert not set(CLASSES) & {*NAMED, *WITHOUT_DOWNLOAD, "CIFAR10", "CIFAR100", "LSUN", "ImageNet", "PhotoTour"}


def test_files_keep_their_bytes_and_their_published_splits(tmp_path: Path) -> None:
    images = pictures(6, 12)
    dtd(tmp_path / "root", images)
    dataset = read(tmp_path, "DTD", tmp_path / "root")
    assert dataset.class_names == ["banded", "zigzagged"]
    assert dataset.sample_ids() == [
        f"dtd/dtd/images/{c}/{c}_{s}.jpg" for part in ((0, 1), (2,)) for c in ("banded", "zigzagged") for s in part
    ]
    np.testing.assert_array_equal(dataset.images(), images[[1, 3, 0, 2, 5, 4]])
    assert dataset.labels().tolist() == [0, 0, 1, 1, 0, 1]
    assert dataset.splits().tolist() == ["train"] * 4 + ["test"] * 2
    (tmp_path / "root/dtd/dtd/images/banded/banded_1.jpg").unlink()
    (tmp_path / "second").mkdir()
    refused(tmp_path / "second", "DTD", tmp_path / "root", r"banded_1\.jpg: cannot be read")


def test_without_a_published_test_split_one_is_drawn_whatever_the_order_of_the_directory(tmp_path: Path) -> None:
    images = pictures(8, 10)
    digests = []
    for turn, order in enumerate((range(8), reversed(range(8)))):
        folder = tmp_path / str(turn) / "SUN397"
        folder.mkdir(parents=True)
        (folder / "ClassName.txt").write_text("/a/abbey\n/z/zoo\n")
        for i in order:
            place = folder / ("a/abbey" if i % 2 else "z/zoo")
            place.mkdir(parents=True, exist_ok=True)
            (place / f"sun_{i}.jpg").write_bytes(encoded(images[i]))
        dataset = read(tmp_path / str(turn), "SUN397", tmp_path / str(turn), test_fraction=0.25)
        assert dataset.class_names == ["abbey", "zoo"]
        assert (dataset.splits() == "test").sum() == 2
        digests.append(dataset.digest)
    assert digests[0] == digests[1]


def test_arrays_are_fetched_checked_and_read_without_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, digits = pictures(9, 16, 1)[..., 0], np.arange(9) % 10
    www, root = tmp_path / "www", tmp_path / "root"
    www.mkdir()
    for name, part in (("usps.bz2", slice(0, 6)), ("usps.t.bz2", slice(6, 9))):
        (www / name).write_bytes(usps(images[part], digits[part]))
    made = import_vision("torchvision.datasets").USPS
    with served(www) as base:
        wrong = {k: [base + v[1], v[1], v[2]] for k, v in made.split_list.items()}
        monkeypatch.setattr(made, "split_list", wrong)
        refused(tmp_path, "USPS", root, "root: USPS could not be fetched .*File not found or corrupted", download=True)
        assert list(root.iterdir()) == []
        right = {k: [url, name, md5((www / name).read_bytes())] for k, (url, name, _) in wrong.items()}
        monkeypatch.setattr(made, "split_list", right)
        dataset = read(tmp_path, "USPS", root, download=True)
        whole = (root / "usps.t.bz2").read_bytes()
        (root / "usps.t.bz2").write_bytes(whole[:-20])
        second = tmp_path / "second"
        second.mkdir()
        refused(second, "USPS", root, r"root: USPS cannot be read .*check data.root")
        refused(second, "USPS", root, r"usps\.bz2: is not a complete USPS; delete it and run again", download=True)
    assert sorted(file.name for file in root.iterdir()) == ["usps.bz2", "usps.t.bz2"]
    assert dataset.sample_ids()[5:7] == ["train-00005", "test-00000"]
    assert dataset.labels().tolist() == digits.tolist()
    assert np.abs(dataset.images()[..., 0].astype(int) - images).max() <= 1  # the format holds rounded decimals


def test_images_that_the_class_opens_itself_are_read(tmp_path: Path) -> None:
    images = pictures(4, 12)
    base = tmp_path / "root" / "oxford-iiit-pet"
    (base / "images").mkdir(parents=True)
    (base / "annotations").mkdir()
    lines = []
    for i, image in enumerate(images):
        name = f"{('Abyssinian', 'great_pyrenees')[i % 2]}_{i}"
        (base / "images" / f"{name}.jpg").write_bytes(encoded(image))
        lines.append(f"{name} {i % 2 + 1} 1 1\n")
    (base / "annotations" / "trainval.txt").write_text("".join(lines[:2]))
    (base / "annotations" / "test.txt").write_text("".join(lines[2:]))
    dataset = read(tmp_path, "OxfordIIITPet", tmp_path / "root")
    assert dataset.class_names == ["Abyssinian", "Great Pyrenees"]
    assert dataset.sample_ids() == ["train-00000", "train-00001", "test-00000", "test-00001"]
    np.testing.assert_array_equal(dataset.images(), images)
