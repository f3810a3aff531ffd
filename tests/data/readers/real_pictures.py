"""The real pictures that foolbox 3.3.4 carries: 20 each of CIFAR-10, CIFAR-100 and ImageNet, labelled by file name."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def real_files(name: str) -> list[tuple[Path, int]]:
    """Return the files of "cifar10", "cifar100" or "imagenet" in order, each with its label. Skips without foolbox."""
    found = importlib.util.find_spec("foolbox")
    if found is None or found.origin is None:
        pytest.skip("foolbox is not installed")
    files = sorted((Path(found.origin).parent / "data").glob(f"{name}_[0-9]*"))
    return [(file, int(file.stem.rsplit("_", 1)[1])) for file in files]


def real_pixels(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the pictures `(20, 32, 32, 3)` of one of the two CIFAR data sets, and their labels."""
    files = real_files(name)
    pixels = [np.asarray(Image.open(file).convert("RGB")) for file, _ in files]
    return np.stack(pixels), np.array([label for _, label in files])


def overlay_cifar(folder: Path, name: str) -> int:
    """Put each real picture into one record of its class in the binary files of `folder`; return how many fitted."""
    pixels, labels = real_pixels(name)
    size, left = 3072 + (2 if name == "cifar100" else 1), list(range(len(labels)))
    for file in sorted(folder.glob("*.bin"), key=lambda f: ("test" in f.name, f.name)):
        records = np.frombuffer(file.read_bytes(), np.uint8).reshape(-1, size).copy()
        for record in records:
            if (i := next((i for i in left if labels[i] == record[size - 3073]), None)) is not None:
                record[-3072:] = pixels[i].transpose(2, 0, 1).reshape(-1)
                left.remove(i)
        file.write_bytes(records.tobytes())
    return len(labels) - len(left)


def overlay_imagenet(root: Path) -> int:
    """Put each real file in the place of a training picture of its class; classes are folders in sorted order."""
    files, folders = real_files("imagenet"), sorted((root / "train").iterdir())
    placed = set()
    for file, label in files:
        target = next((f for f in sorted(folders[label].iterdir()) if f not in placed), None)
        if target is not None:
            target.write_bytes(file.read_bytes())
            placed.add(target)
    return len(placed)
