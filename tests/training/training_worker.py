"""Run a small training in a separate process, which tests kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from expunge.models.checkpoint import digest_of_tensors
from expunge.models.zoo import build
from expunge.training.trainer import train

RECIPE = {
    "epochs": 8,
    "batch_size": 64,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "precision": "auto",
    "seed": 1,
}


def data(n: int = 640) -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    return (digits.images[:n] * 15.9).astype(np.uint8), digits.target[:n].astype(np.int32)


def work(resume_dir: Path, result: Path, precision: str) -> None:
    torch.set_num_threads(1)
    images, labels = data()
    model = build("resnet-small", 10, (8, 8, 1), seed=1)
    history = train(model, images, labels, **{**RECIPE, "precision": precision}, resume_dir=resume_dir)
    chosen = "bf16" if history[-1]["bf16"] else "fp32"
    result.write_text(f"{chosen} {digest_of_tensors(model.state_dict())}")
