"""Test rows on which a registered version must reproduce the evaluation's probabilities."""

from __future__ import annotations

from typing import cast

import numpy as np
import pyarrow.parquet as pq

from expunge.data.dataset import Dataset
from expunge.data.schema import TEXT
from expunge.data.split import Split
from expunge.evaluation.divergence import log_softmax
from expunge.system.paths import EVALUATION, SPLIT

CHECKED_ROWS = 256  # number of test rows compared


def examples_with_answers(
    method: str, dataset: Dataset, model: str | None = None
) -> tuple[np.ndarray | list[str], np.ndarray]:
    """Return up to 256 retained test rows and their evaluated probabilities `(n, C)`.

    The rows are images uint8 `(n, h, w[, c])` or texts. Of images of varying size, those of one shape are taken.
    `model`: one of several models that were evaluated under the name `method`.
    """
    rows = Split(SPLIT).rows("test_retain")
    if dataset.image_shape is None and dataset.encoding != TEXT:
        shapes = dataset.table(["height", "width", "channels"]).take(rows).to_pylist()
        rows = rows[[shape == shapes[0] for shape in shapes]]
    rows = rows[:CHECKED_ROWS]
    logits = (
        pq.read_table(EVALUATION / method / f"{model or method}.parquet", columns=["logits"])["logits"]
        .take(rows)
        .combine_chunks()
    )
    probabilities = np.exp(log_softmax(logits.flatten().to_numpy().reshape(len(rows), -1)))
    if dataset.encoding == TEXT:
        return cast(list[str], dataset.inputs(rows)), probabilities
    images = np.stack(list(dataset.images(rows)))
    return images[..., 0] if images.shape[-1] == 1 else images, probabilities
