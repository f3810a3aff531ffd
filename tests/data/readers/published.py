"""Write small files in the formats of published data sets, byte by byte as their publishers describe them."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def pictures(n: int, side: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def cifar10(root: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """Write six files with equal shares of the rows. A record is a label byte, then 1024 red, green and blue bytes."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR10_NAMES) + "\n\n")
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name, rows in zip(names, np.array_split(np.arange(len(images)), 6), strict=True):
        records = [bytes([labels[r]]) + b"".join(images[r, :, :, c].tobytes() for c in range(3)) for r in rows]
        (folder / name).write_bytes(b"".join(records))
    return folder


def cifar100(root: Path, images: np.ndarray, fine: np.ndarray, n_test: int) -> Path:
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    (folder / "fine_label_names.txt").write_text("\n".join(f"class-{i:02d}" for i in range(100)) + "\n")
    records = [
        bytes([label // 5, label]) + b"".join(image[:, :, c].tobytes() for c in range(3))
        for image, label in zip(images, fine.tolist(), strict=True)
    ]
    (folder / "test.bin").write_bytes(b"".join(records[:n_test]))
    (folder / "train.bin").write_bytes(b"".join(records[n_test:]))
    return folder


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def mnist(root: Path, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], name="MNIST") -> Path:
    """Write training files compressed and test files uncompressed, because torchvision leaves both kinds."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for kind, array in zip(("images-idx3", "labels-idx1"), train, strict=True):
        (raw / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    for kind, array in zip(("images-idx3", "labels-idx1"), test, strict=True):
        (raw / f"t10k-{kind}-ubyte").write_bytes(idx(array))
    return raw


def svhn(root: Path, split: str, images: np.ndarray, digits: np.ndarray) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    labels = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]
    file = root / f"{split}_32x32.mat"
    savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": labels}, do_compression=True)
    return file


def stl10(root: Path, split: str, images: np.ndarray, labels: np.ndarray) -> Path:
    """Write pixels channel by channel and column by column; labels count from 1."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "class_names.txt").write_text("\n".join(f"thing{i}" for i in range(10)))
    columns = b"".join(bytes(image[:, :, c].flatten(order="F").tolist()) for image in images for c in range(3))
    (folder / f"{split}_X.bin").write_bytes(columns)
    (folder / f"{split}_y.bin").write_bytes(bytes((labels + 1).tolist()))
    return folder


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(image.squeeze()).save(out, kind)
    return out.getvalue()


def tiny_imagenet(root: Path, images: np.ndarray, grey: np.ndarray) -> Path:
    """Write three classes: two training images each, then three annotated images, of which the last is grey."""
    folder = root / "tiny-imagenet-200"
    wnids = ["n02124075", "n01443537", "n04067472"]
    for w, wnid in enumerate(wnids):
        (folder / "train" / wnid / "images").mkdir(parents=True)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
        for i in range(2):
            (folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG").write_bytes(encoded(images[2 * w + i]))
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for i, (picture, wnid) in enumerate(zip([images[6], images[7], grey], wnids, strict=True)):
        (folder / "val" / "images" / f"val_{i}.JPEG").write_bytes(encoded(picture))
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "test" / "images").mkdir(parents=True)
    (folder / "test" / "images" / "test_0.JPEG").write_bytes(encoded(images[0]))
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (folder / "words.txt").write_text("n01443537\tgoldfish\n")
    return folder


def imagenet(root: Path, images: np.ndarray) -> Path:
    for i, image in enumerate(images):
        wnid = ("n01440764", "n01443537")[i % 2]
        split = "train" if i < len(images) // 2 else "val"
        folder = root / split / wnid
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{wnid if split == 'train' else 'ILSVRC2012_val'}_{i:08d}.JPEG").write_bytes(encoded(image, "JPEG"))
    return root


def food101(root: Path, images: np.ndarray) -> Path:
    folder = root / "food-101"
    lists: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for i, image in enumerate(images):
        name, split = ("waffles", "apple_pie")[i % 2], "train" if i < len(images) // 2 else "test"
        lists[split].setdefault(name, []).append(f"{name}/{1000 + i}")
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        (folder / "images" / name / f"{1000 + i}.jpg").write_bytes(encoded(image, "JPEG"))
    (folder / "meta").mkdir()
    for split, listed in lists.items():
        (folder / "meta" / f"{split}.json").write_text(json.dumps(listed))
    return folder


def flowers102(root: Path, images: np.ndarray) -> Path:
    """Write pictures whose label is 100 minus their index; half are test pictures, the rest training and validation."""
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for i, image in enumerate(images):
        (folder / "jpg" / f"image_{i + 1:05d}.jpg").write_bytes(encoded(image, "JPEG"))
    n = len(images)
    numbers = np.arange(1, n + 1, dtype=np.uint16)
    savemat(folder / "imagelabels.mat", {"labels": (101 - numbers).astype(np.uint8)[None]})
    sets = {"tstid": numbers[: n // 2][None], "trnid": numbers[n // 2 : -1][None], "valid": numbers[-1:][None]}
    savemat(folder / "setid.mat", sets)
    return folder
