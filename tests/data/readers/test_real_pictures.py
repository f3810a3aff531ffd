"""Real pictures of CIFAR-10, CIFAR-100 and ImageNet come out of the published formats as they went in."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from tests.data.readers import published as made
from tests.data.readers.real_pictures import real_files, real_pixels


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_real_pictures_of_cifar_are_read_from_binary_records(tmp_path: Path, name: str) -> None:
    pixels, labels = real_pixels(name.lower())
    if name == "CIFAR10":
        made.cifar10(tmp_path / "root", pixels, labels)
        order = np.arange(20)
    else:
        made.cifar100(tmp_path / "root", pixels, labels, n_test=5)
        order = np.roll(np.arange(20), -5)
    prepare(f"torchvision:{name}", tmp_path / "dataset", root=tmp_path / "root")
    dataset = Dataset(tmp_path / "dataset")
    np.testing.assert_array_equal(dataset.images(), pixels[order])
    assert dataset.labels().tolist() == labels[order].tolist()
    if name == "CIFAR10":
        assert [dataset.class_names[label] for label in dataset.labels()[:4]] == ["cat", "ship", "ship", "airplane"]


def test_real_pictures_of_imagenet_are_read_from_folders(tmp_path: Path) -> None:
    files = real_files("imagenet")
    for split, part in (("train", files), ("val", files[::4])):
        for file, label in part:
            folder = tmp_path / "root" / split / f"n{label:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{file.stem}.JPEG").write_bytes(file.read_bytes())
    prepare("torchvision:ImageNet", tmp_path / "dataset", root=tmp_path / "root")
    dataset = Dataset(tmp_path / "dataset")
    ids, images = dataset.sample_ids(), dataset.images()
    assert (dataset.manifest["rows_train"], dataset.manifest["rows_test"]) == (20, 5)
    for sample_id, label, image in zip(ids, dataset.labels(), images, strict=True):
        stem = Path(sample_id).stem
        file = next(file for file, _ in files if file.stem == stem)
        assert dataset.class_names[label] == f"n{int(stem.rsplit('_', 1)[1]):08d}"
        encoded = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
        np.testing.assert_array_equal(image, np.asarray(encoded))
