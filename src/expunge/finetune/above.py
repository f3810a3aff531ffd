"""`model.training: above`: the layers above a cut, trained from their public weights on activations of public layers.

Activations are computed one input at a time, so that those of a row depend only on that row and the layers below the
cut, and do not change when other rows are removed. Training draws its order and its new head from the seed and the
number of rows. Training again without some rows, from the stored activations, therefore gives bit for bit the weights
of training on a dataset that never contained them, on the same machine (docs/exact.md).
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

ALONE = 1  # batch size; a batch's size may decide which kernel is chosen, and with it the rounding (docs/exact.md)


def activations_alone(classifier: Classifier, dataset: Dataset, cut: str, work: Path) -> Activations:
    """Return the activations behind `cut` of all training rows, float16, in dataset order, memory-mapped.

    They are computed once, one row at a time, into a file below `work` whose name is a digest of the dataset and the
    layers below the cut.
    """
    mapped: Activations = np.load(_file(classifier, dataset, cut, work, _lower(classifier, cut)), mmap_mode="r")
    return mapped


def _file(classifier: Classifier, dataset: Dataset, cut: str, work: Path, lower: str) -> Path:
    named = {"dataset": dataset.digest, "lower": lower}
    path = work / "activations" / f"{digest_of(named).removeprefix('sha256:')[:16]}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            fetch_activations(
                unsharded(classifier), dataset.inputs(train_rows(dataset)), cut, temporary, batch_size=ALONE
            )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def keep(classifier: Classifier, dataset: Dataset, cut: str, work: Path, out: Path) -> str:
    """Write the activations to `out` and return the digest of the layers below the cut.

    `out` is a hard link where the file system supports it, else a copy. Activation files of other datasets and other
    layers are deleted.
    """
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
    """Return the positions of the training rows in the dataset; the activations have one row for each."""
    return np.flatnonzero(dataset.splits() == TRAIN)


def train_above(
    classifier: Classifier,
    activations: Activations,
    labels: NDArray[np.integer],
    rows: NDArray[np.integer],
    recipe: Mapping[str, Any],
) -> Relearn:
    """Train by `recipe`, the arguments of `Relearn`, on `rows` of `activations` and of `labels` `(len(activations),)`.

    Only the layers of `classifier` below the cut influence the result. The description of the fitted `classifier_`
    records the recipe and the digest of these layers. Raises QualityError where training changed them, and the errors
    of `Relearn.fit`.
    """
    cut = recipe["cut"]
    lower = _lower(classifier, cut)
    fitted = Relearn(**recipe).fit(classifier, activations, labels, rows)
    result = fitted.classifier_
    if _lower(result, cut) != lower:
        raise QualityError(f"training above {cut!r} changed the layers below it; choose another cut")
    result.card = replace(result.card, above={"recipe": dict(recipe), "lower_digest": lower})
    return fitted
