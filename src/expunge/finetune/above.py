"""`model.training: above`: what lies above a cut, trained from its public weights on activations of public layers.

Activations are computed one input at a time, so those of a row depend on that row and the layers below alone: with
other rows gone, every byte of what is left is the same. Training draws its order and its new head from the seed and the
number of rows. So training again without some rows, from kept activations, gives bit for bit the weights of training
on a dataset that never had them, on one machine (docs/exact.md).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.data.dataset import Dataset
from expunge.data.schema import TRAIN
from expunge.finetune.cut import Activations, fetch_activations
from expunge.finetune.relearn import Relearn
from expunge.models.classifier import Classifier
from expunge.models.cuts import split_at_cut
from expunge.models.lower import lower_digest
from expunge.models.sharded import unsharded
from expunge.system.errors import QualityError
from expunge.system.files import digest_of

ALONE = 1  # inputs at a time


def activations_alone(classifier: Classifier, dataset: Dataset, cut: str, work: Path) -> Activations:
    """Activations float16 of all training rows, in dataset order, behind `cut`, memory-mapped.

    They are fetched once, each row alone, into a file below `work` that is named by dataset and lower layers.
    """
    mapped: Activations = np.load(_file(classifier, dataset, cut, work, _lower(classifier, cut)), mmap_mode="r")
    return mapped


def _file(classifier: Classifier, dataset: Dataset, cut: str, work: Path, lower: str) -> Path:
    named = {"dataset": dataset.digest, "lower": lower}
    path = work / "activations" / f"{digest_of(named).removeprefix('sha256:')[:16]}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            fetch_activations(unsharded(classifier), dataset.inputs(train_rows(dataset)), cut, made, batch_size=ALONE)
            os.replace(made, path)
        finally:
            made.unlink(missing_ok=True)
    return path


def keep(classifier: Classifier, dataset: Dataset, cut: str, work: Path, out: Path) -> str:
    """Write these activations to `out`, a second name of the same file where the disk can, and return the digest of the
    layers below the cut. Files of other datasets and lower layers go."""
    lower = _lower(classifier, cut)
    path = _file(classifier, dataset, cut, work, lower)
    try:
        os.link(path, out)
    except OSError:
        shutil.copyfile(path, out)
    for other in path.parent.glob("*.npy"):
        if other != path:
            other.unlink()
    return lower


def _lower(classifier: Classifier, cut: str) -> str:
    return lower_digest(split_at_cut(unsharded(classifier), cut))


def train_rows(dataset: Dataset) -> NDArray[np.int64]:
    """Positions of the training rows, the rows of the activations."""
    return np.flatnonzero(dataset.splits() == TRAIN)


def train_above(
    classifier: Classifier,
    activations: Activations,
    labels: NDArray[np.integer],
    rows: NDArray[np.integer],
    recipe: Mapping[str, Any],
) -> Relearn:
    """Train by `recipe`, the arguments of `Relearn`, on `rows` of `activations` and of `labels` `(len(activations),)`.

    Of `classifier` only the layers below the cut count; `classifier_` of the result has a description that says how it
    was made. Raises QualityError where these layers changed on the way, and what `Relearn.fit` raises.
    """
    cut = recipe["cut"]
    lower = _lower(classifier, cut)
    fitted = Relearn(**recipe).fit(classifier, activations, labels, rows)
    made = fitted.classifier_
    if _lower(made, cut) != lower:
        raise QualityError(f"training above {cut!r} changed what lies below it: choose another cut")
    made.card = replace(made.card, above={"recipe": dict(recipe), "lower_digest": lower})
    return fitted
