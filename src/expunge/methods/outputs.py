"""Logits and features of every row, for the original, the retrained models and the result of a method."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import torch

from expunge.config import Config
from expunge.core import LinearHead
from expunge.data.dataset import Dataset
from expunge.data.split import Split
from expunge.evaluation.measuring import Outputs
from expunge.features.extract import ExtractionSettings, extract_shards
from expunge.features.store import FeatureStore
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.checkpoint import load_classifier
from expunge.models.trained_on import RECORD, refuse_other_rows
from expunge.system.files import read_manifest
from expunge.system.paths import DATASET, FEATURES, MODELS, UNLEARNED, WORK, retrained


def outputs_of_classifier(name: str) -> Outputs:
    """Outputs of the trained classifier `name`, from its stored features."""
    head = load_classifier(MODELS / name).head
    z = FeatureStore(FEATURES / name).z()
    return Outputs(LinearHead.of(head).logits(torch.from_numpy(z)).numpy(), z)


def outputs_of_method(name: str, original: Outputs, config: Config) -> Outputs:
    """Outputs of the unlearned model `name`: its map and shipped head on the original's features.

    If the model has a backbone of its own, features are extracted with that.
    """
    unlearned = UnlearnedModel.load(UNLEARNED / name)
    z = torch.from_numpy(original.z)
    if unlearned.classifier is not None:
        settings = ExtractionSettings.of(config.features)
        work, shards = extract_shards(unlearned.classifier, Dataset(DATASET, verify=False), WORK / "features", settings)
        z = torch.from_numpy(shards.z())
        shutil.rmtree(work)
    return Outputs(unlearned.logits(z).numpy(), z.numpy(), unlearned.map(z).float().numpy())


def outputs_of_retrained(config: Config, split: Split) -> list[Outputs]:
    """Outputs of the retrained models, one per seed of `retrain.seeds`; none if `reference` is skip.

    Raises CheckpointError for a model whose record says that it was trained on other rows than `split` retains.
    """
    if config.reference == "skip":
        return []
    check_retrained(split, config.retrain.seeds)
    return [outputs_of_classifier(retrained(seed)) for seed in config.retrain.seeds]


def check_retrained(split: Split, seeds: Sequence[int]) -> None:
    """Raise CheckpointError for the first retrained model that was trained on other rows than `split` retains."""
    rows = split.training_rows
    for seed in seeds:
        directory = MODELS / retrained(seed)
        trained = read_manifest(directory, verify=False).get(RECORD)
        refuse_other_rows(directory, trained, lambda dataset: split.digest_of(rows, dataset), len(rows))
