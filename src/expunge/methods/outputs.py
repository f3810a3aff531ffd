"""Logits and features of rows, for the original, the retrained models and the result of a method.

Features stay on disk. Outputs of chosen rows are read into memory for the metrics; the logits of every row are computed
part by part, as they are written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expunge.config import Config
from expunge.core import FeatureMap, LinearHead
from expunge.data.dataset import Dataset
from expunge.data.split import Split
from expunge.evaluation.measuring import Outputs
from expunge.features.extract import ExtractionSettings, extract_shards
from expunge.features.store import FeatureStore, Shards
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.checkpoint import load_classifier
from expunge.models.trained_on import RECORD, refuse_other_rows
from expunge.system.files import read_manifest
from expunge.system.paths import DATASET, FEATURES, MODELS, ORIGINAL, UNLEARNED, WORK, retrained


@dataclass(frozen=True)
class StoredOutputs:
    """A model by its features on disk; `logits` and `map_` take features `(k, d)`. `map_` is None without a map."""

    features: Shards
    logits: Callable[[Tensor], Tensor]
    map_: FeatureMap | None = None

    def at(self, rows: np.ndarray | None = None) -> Outputs:
        """Outputs of the dataset positions `rows (k,)`, in that order; None: of all rows."""
        z = torch.from_numpy(self.features.z(rows))
        z_prime = None if self.map_ is None else self.map_(z).float().numpy()
        return Outputs(self.logits(z).numpy(), z.numpy(), z_prime)

    def parts(self) -> Iterator[np.ndarray]:
        """Yield the logits `(k, C)` of all rows in dataset order, a part at a time."""
        for _, z in self.features.iter_z():
            yield self.logits(torch.from_numpy(z.copy())).numpy()  # a copy, because the mapped file is read-only


def stored_classifier(name: str) -> StoredOutputs:
    """The trained classifier `name`."""
    return StoredOutputs(FeatureStore(FEATURES / name), LinearHead.of(load_classifier(MODELS / name).head).logits)


@contextmanager
def stored_method(name: str, config: Config) -> Iterator[StoredOutputs]:
    """The unlearned model `name`: its map and shipped head on the original's features.

    If the model has a backbone of its own, features are extracted with that, and removed at the end of the context.
    """
    unlearned = UnlearnedModel.load(UNLEARNED / name)
    if unlearned.classifier is None:
        yield StoredOutputs(FeatureStore(FEATURES / ORIGINAL), unlearned.logits, unlearned.map)
        return
    settings = ExtractionSettings.of(config.features)
    # A folder of its own: another method that is measured beside it may have come to the same weights.
    own = WORK / "features" / name
    work, shards = extract_shards(unlearned.classifier, Dataset(DATASET, verify=False), own, settings)
    yield StoredOutputs(shards, unlearned.logits, unlearned.map)
    shutil.rmtree(work)


def stored_retrained(config: Config, split: Split) -> list[StoredOutputs]:
    """The retrained models, one per seed of `retrain.seeds`; none if `reference` is skip.

    Raises CheckpointError for a model whose record says that it was trained on other rows than `split` retains.
    """
    if config.reference == "skip":
        return []
    check_retrained(split, config.retrain.seeds)
    return [stored_classifier(retrained(seed)) for seed in config.retrain.seeds]


def check_retrained(split: Split, seeds: Sequence[int]) -> None:
    """Raise CheckpointError for the first retrained model that was trained on other rows than `split` retains."""
    rows = split.training_rows
    for seed in seeds:
        directory = MODELS / retrained(seed)
        trained = read_manifest(directory, verify=False).get(RECORD)
        refuse_other_rows(directory, trained, lambda dataset: split.digest_of(rows, dataset), len(rows))
