"""Build the classifier that params name and train all its weights, in this process or together with others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from expunge.config import Config
from expunge.data.dataset import Dataset
from expunge.data.schema import TEXT
from expunge.finetune.process_group import ProcessGroup
from expunge.finetune.rows import examples
from expunge.models.classifier import Classifier
from expunge.models.trained_on import refuse_seen
from expunge.models.zoo import build
from expunge.system.errors import ConfigError
from expunge.training.settings import recipe_of
from expunge.training.trainer import train

HOLDOUT_SEED = 20


def build_classifier(config: Config, dataset: Dataset, seed: int) -> Classifier:
    """Return the model that params name, for the images and classes of `dataset`, before training."""
    model = config.model
    if model.checkpoint is not None and not model.saw_forget_data:
        refuse_seen(Path(model.checkpoint), dataset.digest)
    return build(
        model.name,
        len(dataset.class_names),
        example_shape(dataset),
        training=model.training,
        saw_forget_data=model.saw_forget_data,
        image_size=model.image_size,
        checkpoint=model.checkpoint,
        head=model.head,
        layers=config.features.modules,
        seed=seed,
        public=model.weights == "public",
        random_features=model.random_features,
    )


def example_shape(dataset: Dataset) -> tuple[int, int, int] | None:
    """Return the height, width and channels that a backbone is built for; None for texts.

    They are those of the dataset or, if its images differ in size, of its first image.
    """
    if dataset.encoding == TEXT:
        return None
    if dataset.image_shape is not None:
        return dataset.image_shape
    height, width, channels = dataset.images(np.array([0]))[0].shape
    return height, width, channels


def fit_all(
    config: Config,
    classifier: Classifier,
    dataset: Dataset,
    rows: np.ndarray,
    seed: int,
    resume: Path,
    group: ProcessGroup | None = None,
) -> list[dict[str, float]]:
    """Train all weights of `classifier` in place, in this process, by the recipe of params; see `trainer.train`."""
    inputs = examples(classifier, dataset, rows)
    recipe = recipe_of(config.train, classifier)
    if dataset.encoding == TEXT and recipe.augment != "none":
        raise ConfigError(f"params.yaml: train.augment: {recipe.augment} is for images; set it to none for texts")
    return train(
        classifier,
        inputs,
        dataset.labels()[rows],
        **recipe.arguments(),
        augment_workers=config.train.augment_workers,
        seed=seed,
        holdout=held_out(dataset.rows, recipe.holdout)[rows] if recipe.patience is not None else None,
        resume_dir=resume,
        group=group,
    )


def held_out(rows: int, share: float) -> np.ndarray:
    """Return a mask, bool `(rows,)`, of the rows that early stopping watches and that no model is trained on.

    It is the same for the original, every retrained model and every seed.
    """
    drawn: np.ndarray = np.random.default_rng(HOLDOUT_SEED).random(rows) < share
    return drawn
