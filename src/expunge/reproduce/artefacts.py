"""Numbers that published tables contain and ours do not, computed on request (see `switches.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from expunge.config import Config
from expunge.core import LinearHead
from expunge.data.dataset import Dataset
from expunge.data.schema import FORGET, RETAIN
from expunge.data.split import Split
from expunge.evaluation.representation import linear_cka
from expunge.features.store import FeatureStore
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.checkpoint import load_classifier
from expunge.models.classifier import Classifier
from expunge.system.errors import DataError
from expunge.system.files import read_manifest
from expunge.system.paths import DATASET, FEATURES, MODELS, ORIGINAL, SPLIT, UNLEARNED, retrained
from expunge.training.augment import make_augment

ROWS = 5_000  # largest number of retained rows, drawn with seed 0
BATCH = 250


def augmented_retained(workspace: Path, config: Config) -> dict[str, float]:
    """Accuracy on augmented retained training images, in [0, 1], by model; one augmentation per image, seed 0.

    Raises DataError if images differ in size.
    """
    dataset, rows = Dataset(workspace / DATASET, verify=False), Split(workspace / SPLIT).rows(RETAIN)
    if len(rows) > ROWS:
        rows = np.sort(np.random.default_rng(0).choice(rows, ROWS, replace=False))
    labels = torch.from_numpy(dataset.labels()[rows].astype(np.int64))
    images = dataset.images(rows)
    if isinstance(images, list):
        raise DataError(f"{dataset.directory}: images differ in size, so they cannot be augmented as in training")
    name = config.train.augment if config.train.augment not in (None, "none") else "flip-crop"
    augment = make_augment(str(name), *images.shape[1:3])
    assert augment is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        changed = augment(torch.from_numpy(images))
    original = load_classifier(workspace / MODELS / ORIGINAL)
    z = _features(original, changed)
    found = {ORIGINAL: _right(LinearHead.of(original.head).logits(z), labels)}
    for seed in config.retrain.seeds if config.reference == "retrain" else ():
        model = load_classifier(workspace / MODELS / retrained(seed))
        logits = LinearHead.of(model.head).logits(_features(model, changed))
        found[f"retrained-{seed}"] = _right(logits, labels)
    for method, unlearned in _methods(workspace, config):
        own = z if unlearned.classifier is None else _features(unlearned.classifier, changed)
        found[method] = _right(unlearned.logits(own), labels)
    return found


def logits_cka(workspace: Path, config: Config) -> dict[str, float | None]:
    """Linear CKA of logits with the original's features on forgotten rows, by method.

    Methods with weights of their own below the head are left out.
    """
    z = FeatureStore(workspace / FEATURES / ORIGINAL).z(Split(workspace / SPLIT).rows(FORGET))
    return {
        method: linear_cka(unlearned.logits(torch.from_numpy(z)).numpy(), z)
        for method, unlearned in _methods(workspace, config)
        if unlearned.classifier is None
    }


def _methods(workspace: Path, config: Config) -> Iterator[tuple[str, UnlearnedModel]]:
    for method in config.methods:
        directory = workspace / UNLEARNED / method
        if not read_manifest(directory, verify=False).get("refused"):
            yield method, UnlearnedModel.load(directory)


def _features(classifier: Classifier, images: Tensor) -> Tensor:
    classifier.eval()
    with torch.inference_mode():
        return torch.cat([classifier.features(part).float().cpu() for part in torch.split(images, BATCH)])


def _right(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())
