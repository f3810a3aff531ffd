"""Functions that return the predicted classes of a version, or of the original, for images or texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.data.dataset import Inputs
from expunge.models.checkpoint import load_classifier
from expunge.report.comparison import Predict
from expunge.serving.servable import BATCH, Servable


def predictor(servable: Servable) -> Predict:
    """Return a function that predicts classes int64 `(n,)` with `servable`, in batches."""

    def predict(inputs: Inputs) -> NDArray[np.int64]:
        batches = [servable.logits(inputs[i : i + BATCH]).argmax(1).numpy() for i in range(0, len(inputs), BATCH)]
        return np.concatenate(batches).astype(np.int64)

    return predict


def original(directory: Path) -> Predict:
    """Return the predictor of the original classifier, trained on all rows, from its checkpoint."""
    classifier = load_classifier(directory)

    def predict(inputs: Inputs) -> NDArray[np.int64]:
        with torch.inference_mode():
            batches = [classifier(inputs[i : i + BATCH]).argmax(1).numpy() for i in range(0, len(inputs), BATCH)]
        return np.concatenate(batches).astype(np.int64)

    return predict
