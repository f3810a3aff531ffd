"""Test that augmentation in worker processes gives the bytes of augmentation in the training process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from expunge.finetune.process_group import ProcessGroup
from expunge.models.checkpoint import digest_of_tensors
from expunge.models.classifier import Classifier, ModelCard
from expunge.models.preprocess import Preprocess
from expunge.system.errors import ExpungeError
from expunge.training.batches import Batches
from expunge.training.trainer import train
from tests.training.training_worker import RECIPE, data

IMAGES, LABELS = data(128)
SHORT = {**RECIPE, "epochs": 3, "precision": "fp32", "lr": 0.01, "augment": "randaugment", "accumulate": 2}
PARTS = list(torch.split(torch.arange(128), 30))


def trained(workers: int, resume: Path | None = None, group: ProcessGroup | None = None) -> str:
    torch.manual_seed(3)
    backbone = nn.Sequential(nn.Flatten(), nn.Dropout(0.2))
    preprocess = Preprocess(8, 8, 1, (0.5,), (0.5,))
    classifier = Classifier(backbone, nn.Linear(64, 10), preprocess, ModelCard("flat", 10, 64, "full", True))
    train(classifier, IMAGES, LABELS, **SHORT, augment_workers=workers, resume_dir=resume, group=group)
    return digest_of_tensors(classifier.state_dict())


def test_the_number_of_workers_does_not_change_the_weights(tmp_path: Path) -> None:
    class Ends(ProcessGroup):
        def total(self, value: torch.Tensor) -> torch.Tensor:
            passes.append(value)
            if len(passes) == 2:
                raise KeyboardInterrupt
            return value

    passes: list[torch.Tensor] = []
    whole = trained(0)
    assert trained(1) == trained(2) == whole
    with pytest.raises(KeyboardInterrupt):
        trained(2, tmp_path, Ends())
    assert trained(1, tmp_path) == whole
    assert not psutil.Process().children(recursive=True)


def test_epochs_and_processes_draw_differently() -> None:
    images = torch.from_numpy(IMAGES)
    one, two = Batches(images, "randaugment", 0, 1, 0, 2), Batches(images, "randaugment", 0, 1, 1, 2)
    drawn = [torch.cat(list(b.epoch(e, PARTS))) for b, e in ((one, 0), (one, 1), (two, 0), (one, 0))]
    assert torch.equal(drawn[0], drawn[3])
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert len(next(one.epoch(0, [PARTS[0][:0]]))) == 0


def test_a_worker_that_dies_is_named() -> None:
    with (
        pytest.raises(ExpungeError, match=r"set train\.augment_workers: 0"),
        Batches(torch.from_numpy(np.repeat(IMAGES, 4, axis=0)), "trivial", 1, 1, 0, 1) as batches,
    ):
        for _ in batches.epoch(0, PARTS * 20):
            for child in psutil.Process().children():
                os.kill(child.pid, signal.SIGKILL)
