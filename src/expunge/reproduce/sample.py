"""`--sample`: a few dozen synthetic images in the published formats, so that a whole preset runs in minutes.

Each class has a stripe pattern of its own with noise. The numbers of such a run have no meaning.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from expunge.reproduce.presets import Preset, merged
from expunge.system.errors import ConfigError
from expunge.system.files import write_bytes, write_text
from expunge.system.vision_imports import import_vision

SEED = 0
FOLDER, PEOPLE = "sample", "people.npz"
STEPS, FEW = 20, 3
# Image sides for which models are built, small enough to train on a processor in seconds; None: that of the images.
SIDES = {
    "torchvision:CIFAR10": 16, "torchvision:CIFAR100": 8, "torchvision:TinyImageNet": 8, "torchvision:ImageNet": 32,
    "fashion-mnist": None, "emoji": None,
}  # fmt: skip


def cut(preset: Preset) -> Preset:
    """The preset reduced to its first run, one beta, few steps, and few rows per round."""
    first = next(iter(preset.runs))
    grid = preset.grid and merged(preset.grid, {"beta": [0.01], "every": {"steps": STEPS}})
    rounds = [{**asked, "rows": FEW} if "rows" in asked else asked for asked in preset.rounds]
    return replace(preset, grid=grid, runs={first: preset.runs[first]}, rounds=rounds)


def sample_changes(home: Path, preset: Preset) -> dict[str, Any]:
    """Write the sample's files below `home` and return the changes of the preset's params.

    Raises ConfigError for a data set without a sample.
    """
    source = preset.params.get("data", {}).get("source", "fashion-mnist")
    if source not in WRITERS:
        raise ConfigError(f"{preset.name}: {source} has no sample; run the preset without --sample")
    place = home / FOLDER
    shutil.rmtree(place, ignore_errors=True)
    WRITERS[source](place)
    changes: dict[str, Any] = {
        "data": _data(source, place.resolve()),
        "train": {"epochs": 1, "batch_size": 32},
        "retrain": {"seeds": [1]},
        "features": {"batch_size": 50},
        "split": {"duplicates": "warn", "near_duplicates": "ignore"},
        "fit": {"loft-published": {"steps": FEW}, "head-refit": {"steps": FEW}},
    }
    if preset.params.get("split", {}).get("selector") == "random":
        changes["split"]["fraction"] = 0.2
    changes["model"] = {"image_size": SIDES[source]}
    if preset.weights is not None:
        changes.setdefault("model", {})["checkpoint"] = str(_drawn_weights(place, preset.weights["model"]).resolve())
    return changes


def _data(source: str, place: Path) -> dict[str, Any]:
    """Return the changes of the section `data` that make it read the sample of `source`."""
    if source == "emoji":
        return {"source": "npz", "path": str(place / PEOPLE)}
    return {"source": f"torchvision:{NAMES.get(source, source.split(':')[-1])}", "root": str(place), "download": False}


def _drawn_weights(place: Path, model: str) -> Path:
    """Write a checkpoint of `model` with random weights and 1,000 classes, and return its path."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = import_vision("torchvision.models").get_model(model, weights=None)
    file = place / f"{model}.safetensors"
    write_bytes(file, save({k: v.contiguous() for k, v in network.state_dict().items()}))
    return file


def pictures(labels: np.ndarray, side: int, seed: int) -> np.ndarray:
    """Images, uint8 `(n, side, side, 3)`: stripes with noise; angle, width and colour depend on the class."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    out = np.empty((len(labels), side, side, 3), np.uint8)
    for i, label in enumerate(labels.tolist()):
        own = np.random.default_rng(1000 + label)
        angle, width, colour = own.uniform(0, np.pi), own.uniform(4, 20), own.uniform(60, 200, 3)
        wave = np.sin(width * (x * np.cos(angle) + y * np.sin(angle)))
        noisy = colour * (1 + 0.5 * wave[..., None]) + rng.normal(0, 12, (side, side, 3))
        out[i] = np.clip(noisy, 0, 255)
    return out


def _cifar(place: Path, classes: int, per_class: int) -> None:
    """Write binary records of CIFAR-10 or -100: label bytes, then the red, green and blue planes."""
    fine = classes == 100
    folder = place / ("cifar-100-binary" if fine else "cifar-10-batches-bin")
    names = [f"class-{i:02d}" for i in range(classes)]
    write_text(folder / ("fine_label_names.txt" if fine else "batches.meta.txt"), "\n".join(names) + "\n")

    def records(labels: np.ndarray, seed: int) -> bytes:
        heads = [bytes([label // 5, label]) if fine else bytes([label]) for label in labels.tolist()]
        planes = pictures(labels, 32, seed).transpose(0, 3, 1, 2)
        return b"".join(head + image.tobytes() for head, image in zip(heads, planes, strict=True))

    drawn = np.arange(min(classes, 20))
    train, test = np.concatenate([np.arange(classes), np.tile(drawn, per_class - 1)]), drawn
    parts = {"train.bin": train} if fine else {f"data_batch_{i + 1}.bin": train[i::5] for i in range(5)}
    for seed, (name, labels) in enumerate({**parts, "test.bin" if fine else "test_batch.bin": test}.items()):
        write_bytes(folder / name, records(labels, seed))


# Classes of Tiny-ImageNet with two training images instead of one: those that presets name, and twenty retained ones.
DRAWN = np.array([*range(12), 44, 53, 57, 65, 83, 108, 115, 150, 153, 168, 179, *range(180, 200)])


def _tiny_imagenet(place: Path) -> None:
    folder = place / "tiny-imagenet-200"
    names = [f"n{i:08d}" for i in range(200)]
    write_text(folder / "wnids.txt", "\n".join(names) + "\n")
    train, test = np.sort(np.concatenate([np.arange(200), DRAWN])), DRAWN
    for i, image in enumerate(pictures(train, 64, 0)):
        name = names[train[i]]
        _jpeg(folder / "train" / name / "images" / f"{name}_{i % 2}.JPEG", image)
    for i, image in enumerate(pictures(test, 64, 1)):
        _jpeg(folder / "val" / "images" / f"val_{i}.JPEG", image)
    write_text(
        folder / "val" / "val_annotations.txt",
        "".join(f"val_{i}.JPEG\t{names[c]}\t0\t0\t9\t9\n" for i, c in enumerate(test)),
    )


def _imagenet(place: Path) -> None:
    """Write 1,000 classes with one training image each, and more of the three that presets forget."""
    names = [f"n{i:08d}" for i in range(1000)]
    train = np.concatenate([np.arange(1000), np.repeat([97, 316, 852], 9)])
    test = np.concatenate([np.arange(0, 1000, 50), np.repeat([97, 316, 852], 3)])
    for split, labels in (("train", train), ("val", test)):
        for i, image in enumerate(pictures(labels, 32, len(split))):
            name = names[labels[i]]
            _jpeg(place / split / name / f"{name}_{i}.JPEG", image)


def _fashion(place: Path) -> None:
    """Write idx files: a magic number, the sizes, and the bytes."""
    raw = place / "FashionMNIST" / "raw"
    for kind, labels in (("train", np.tile(np.arange(10), 12)), ("t10k", np.tile(np.arange(10), 3))):
        grey = pictures(labels, 28, len(kind))[..., 0]
        for what, array in (("images-idx3", grey), ("labels-idx1", labels.astype(np.uint8))):
            sizes = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
            write_bytes(raw / f"{kind}-{what}-ubyte", bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def _people(place: Path) -> None:
    """Write an npz file of 30 people, each with three training images and a test image of one class.

    The reader of emoji takes only the published archives, which it knows by their digests.
    """
    person = np.repeat(np.arange(30), 4)
    labels = person % 9
    place.mkdir(parents=True)
    np.savez(
        place / PEOPLE,
        images=pictures(labels, 64, SEED), labels=labels, subjects=np.array([f"person-{p:02d}" for p in person]),
        split=np.tile(np.array(["train", "train", "train", "test"]), 30),
    )  # fmt: skip


def _jpeg(file: Path, image: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file, quality=90)


NAMES = {"fashion-mnist": "FashionMNIST"}
WRITERS: dict[str, Callable[[Path], None]] = {
    "torchvision:CIFAR10": lambda place: _cifar(place, 10, 6),
    "torchvision:CIFAR100": lambda place: _cifar(place, 100, 2),
    "torchvision:TinyImageNet": _tiny_imagenet,
    "torchvision:ImageNet": _imagenet,
    "fashion-mnist": _fashion,
    "emoji": _people,
}
