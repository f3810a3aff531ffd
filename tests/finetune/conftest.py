"""A small network that is trained once on the digits. Every test of a method starts from it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.data.readers.digits import read_digits
from expunge.models.classifier import Classifier, ModelCard
from expunge.models.preprocess import Preprocess
from expunge.training.trainer import train


@dataclass(frozen=True, repr=False)
class Trained:
    """A trained classifier, which tests must copy, images `(n, 8, 8, 1)`, labels, and the rows of a class request."""

    model: Classifier
    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    retain: NDArray[np.int64]
    forget: NDArray[np.int64]
    test: NDArray[np.int64]

    @property
    def rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.retain, self.forget

    def fresh(self) -> Classifier:
        return copy.deepcopy(self.model)

    @torch.no_grad()
    def accuracy(self, model: Classifier, rows: NDArray[np.int64]) -> float:
        return float((model(self.images[rows]).argmax(1).numpy() == self.labels[rows]).mean())

    @torch.no_grad()
    def z(self, model: Classifier, rows: NDArray[np.int64]) -> torch.Tensor:
        return model.features(self.images[rows])


def small_network(seed: int = 0) -> Classifier:
    """Return a network of two convolutions with batch norm for 8 x 8 pictures, with 128 features."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        head = nn.Linear(128, 10)
    return Classifier(backbone, head, Preprocess(8, 8, 1, (0.3,), (0.4,)), ModelCard("small", 10, 128, "full", True))


@pytest.fixture(scope="session")
def digits() -> Trained:
    source = read_digits()
    [batch] = source.batches
    images, labels = np.asarray(batch.content), np.asarray(batch.labels, dtype=np.int32)
    is_train = np.asarray(batch.splits) == "train"
    train_rows, test = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    forgotten = labels[train_rows] == 5
    model = small_network()
    train(
        model, images[train_rows], labels[train_rows],
        epochs=6, batch_size=64, lr=0.2, momentum=0.9, weight_decay=5e-4, precision="fp32", seed=1,
    )  # fmt: skip
    return Trained(model.eval(), images, labels, train_rows[~forgotten], train_rows[forgotten], test)
