"""Train a classifier as params say: the original and, with the same recipe on retained rows, its references."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.config import Config
from expunge.core import RidgeHead, SoftmaxHead
from expunge.data.dataset import Dataset
from expunge.data.schema import TEXT
from expunge.data.split import digest_of_rows
from expunge.features.extract import ExtractionSettings, extract_shards
from expunge.features.store import FeatureStore, Shards
from expunge.finetune.above import activations_alone, train_above, train_rows
from expunge.finetune.head_shards import HeadShards
from expunge.finetune.ray_shards import on_ray
from expunge.finetune.relearn import Relearn
from expunge.finetune.rows import examples
from expunge.finetune.shard_assignment import assign_shards
from expunge.finetune.shards import Trained, train_shards
from expunge.models.checkpoint import save_classifier
from expunge.models.classifier import ABOVE, FROZEN, Classifier
from expunge.models.trained_on import record, refuse_seen
from expunge.models.zoo import build
from expunge.system.errors import ConfigError
from expunge.system.files import digest_of, staged_dir, write_manifest
from expunge.system.paths import FORGOTTEN, workspace
from expunge.system.progress import descent_progress, log_message
from expunge.training.launch import train_with_torchrun
from expunge.training.process_group import ProcessGroup
from expunge.training.settings import Recipe, recipe_of
from expunge.training.trainer import computes_bf16, train

PRODUCER = "expunge.training.recipe"
HOLDOUT_SEED = 20
# Settings that training above a cut does not have, since it has one schedule and its inputs are activations: key -> the
# value that turns it off.
NOT_ABOVE: dict[str, Any] = {
    "schedule": None, "warmup": None, "layer_decay": 1, "label_smoothing": 0, "ema": 0, "frozen_norm": False,
    "augment": "none", "accumulate": 1, "compile": False, "patience": None,
}  # fmt: skip


def make_classifier(
    config: Config,
    dataset: Dataset,
    rows: np.ndarray,
    seed: int,
    out: Path,
    work: Path,
    store: FeatureStore | None = None,
    forgotten: Path | None = None,
) -> dict[str, Any]:
    """Train as params say on the dataset positions `rows`, write the model directory `out`, and return what it cost.

    `store` holds the features of the frozen backbone if they were extracted already. `forgotten` is the folder of the
    key that assigns subjects to `model.shards`, by default the workspace's; the key is made there on first use. Raises
    DataError for training on images of different sizes, and CheckpointError if given weights do not fit.
    """
    model = config.model
    forgotten = forgotten or workspace() / FORGOTTEN
    classifier = build_classifier(config, dataset, seed)
    resume = work / "train" / digest_of({"out": str(out), "seed": seed}).removeprefix("sha256:")[:16]
    cost: dict[str, Any] = {"train_s": 0.0, "epochs": []}
    steps: Trained | None = None
    if model.training == "full":
        cost = _train_all(config, classifier, dataset, rows, seed, resume)
    if model.training == ABOVE:
        classifier, cost, steps = _train_above(config, classifier, dataset, rows, seed, work, forgotten)
    head: RidgeHead | SoftmaxHead | HeadShards | None = None
    if model.training in FROZEN:
        head, cost = _train_head(config, classifier, dataset, rows, work, store, forgotten)
    with staged_dir(out) as staging:
        description = save_classifier(staging, classifier)
        if head is not None:
            head.save(staging)
        if steps is not None:
            steps.save_steps(staging)
        write_manifest(
            staging,
            PRODUCER,
            seed=seed,
            backbone_digest=description["backbone_digest"],
            trained_on=record(dataset.digest, digest_of_rows(dataset, rows), len(rows), model.training),
        )
    shutil.rmtree(resume, ignore_errors=True)
    return cost


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


def _train_all(
    config: Config, classifier: Classifier, dataset: Dataset, rows: np.ndarray, seed: int, resume: Path
) -> dict[str, Any]:
    if config.train.engine == "torchrun":
        history = train_with_torchrun(config, classifier, dataset, rows, seed, resume)
    else:
        history = fit_all(config, classifier, dataset, rows, seed, resume)
    classifier.card = replace(classifier.card, recipe=recorded(recipe_of(config.train, classifier), history))
    log_message(f"train: {len(history)} epochs on {len(rows):,} rows, training accuracy {history[-1]['accuracy']:.4f}")
    return {"train_s": round(sum(epoch["seconds"] for epoch in history), 3), "epochs": history}


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


def recorded(recipe: Recipe, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the record of the training for the model's card.

    `mean_lr` is the mean over all steps, `final_lr` the rate of the last step, and `precision` the one that was used,
    "fp32" or "bf16". Methods that train weights take their learning rates and their precision from these.
    """
    mean = sum(h["lr_mean"] for h in history) / len(history)
    used = "bf16" if history[-1]["bf16"] else "fp32"
    return {
        **asdict(recipe), "precision": used, "mean_lr": mean, "final_lr": history[-1]["lr"], "passes": len(history),
    }  # fmt: skip


def recipe_above(config: Config, seed: int, classifier: Classifier) -> dict[str, Any]:
    """Return the arguments of `Relearn` for `model.training: above`.

    Raises ConfigError for settings that cannot be used with it.
    """
    recipe = recipe_of(config.train, classifier)
    for key, neutral in NOT_ABOVE.items():
        if getattr(config.train, key) not in (None, neutral):
            raise ConfigError(
                f"params.yaml: train.{key}: cannot be used with model.training: above; set it to {neutral}"
            )
    device = classifier.head.weight.device
    bf16 = computes_bf16(device) if recipe.precision == "auto" else recipe.precision == "bf16"
    try:
        return Relearn(
            cut=config.model.cut or "",
            epochs=float(recipe.epochs),
            batch_size=recipe.batch_size,
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            targets="labels",
            precision="bf16" if bf16 else "fp32",
            seed=seed,
            start="public",
            optimizer=recipe.optimizer,
        ).get_params()
    except ValueError as e:
        raise ConfigError(f"params.yaml: train: {e}") from None


def _train_above(
    config: Config, classifier: Classifier, dataset: Dataset, rows: np.ndarray, seed: int, work: Path, forgotten: Path
) -> tuple[Classifier, dict[str, Any], Trained | None]:
    """Compute activations in the work directory, then train the layers above the cut.

    The activations stage will find the activations there.
    """
    recipe = recipe_above(config, seed, classifier)
    activations = activations_alone(classifier, dataset, recipe["cut"], work)
    start_time = time.perf_counter()
    train, (shards, slices) = train_rows(dataset), (config.model.shards, config.model.slices)
    labels, chosen = dataset.labels()[train], np.searchsorted(train, rows)
    if shards == slices == 1:
        fitted = train_above(classifier, activations, labels, chosen, recipe)
        log_message(
            f"train: trained above {recipe['cut']} on {len(rows):,} rows, training accuracy "
            f"{fitted.history_[-1]['accuracy']:.4f}"
        )
        trained, history, steps = fitted.classifier_, fitted.history_, None
    else:
        placed = assign_shards(dataset, train, forgotten, shards, slices)
        engine = on_ray(config.extract.address, config.extract.workers) if config.extract.engine == "ray" else None
        steps = train_shards(classifier, activations, labels, chosen, recipe, placed, engine=engine)
        log_message(f"train: trained above {recipe['cut']} on {len(rows):,} rows in {shards} shards of {slices} slices")
        trained, history = steps.classifier_, steps.history_
    return trained, {"train_s": round(time.perf_counter() - start_time, 3), "epochs": history}, steps


def make_head(training: str, settings: Mapping[str, Any]) -> RidgeHead | SoftmaxHead:
    """Return the head of `model.training` "ridge" or "head", which is not fitted.

    Raises ConfigError for settings that the head does not take.
    """
    try:
        if training == "ridge":
            return RidgeHead(**settings)
        head = SoftmaxHead(**settings)
        head.on_pass = descent_progress("head", head.tol)
        return head
    except (TypeError, ValueError) as e:
        raise ConfigError(f"params.yaml: train.head: {e}") from None


def _train_head(
    config: Config,
    classifier: Classifier,
    dataset: Dataset,
    rows: np.ndarray,
    work: Path,
    store: FeatureStore | None,
    forgotten: Path,
) -> tuple[RidgeHead | SoftmaxHead | HeadShards, dict[str, Any]]:
    """Extract features in the work directory, where the extract stage will find them; then fit the head to its optimum.

    The head also gets what makes refitting after a deletion fast. With `model.shards` above 1, one head is fitted for
    each shard of subjects.
    """
    make, count = partial(make_head, config.model.training, config.train.head), config.model.shards
    head: RidgeHead | SoftmaxHead | HeadShards = make()  # fails on wrong settings before features are extracted
    shards: Shards = (
        store or extract_shards(classifier, dataset, work / "features", ExtractionSettings.of(config.features))[1]
    )
    start_time = time.perf_counter()
    z, labels = torch.from_numpy(shards.z(rows)), torch.from_numpy(dataset.labels()[rows])
    if count > 1:
        placed = assign_shards(dataset, rows, forgotten, count, 1)
        head = HeadShards.fit(make, z, labels, placed.shard, count, len(dataset.class_names), placed.key)
    else:
        assert not isinstance(head, HeadShards)
        head.fit(z, labels, len(dataset.class_names))
    for one in head.known if isinstance(head, HeadShards) else [head]:
        _prepare(one)
    classifier.set_head(head.head_.weight, head.head_.bias)
    log_message(
        f"train: trained a {config.model.training} head on {len(rows):,} rows of {shards.dim} features"
        + (f" in {count} shards" if count > 1 else "")
    )
    return head, {"train_s": round(time.perf_counter() - start_time, 3), "epochs": []}


def _prepare(head: RidgeHead | SoftmaxHead) -> None:
    if isinstance(head, SoftmaxHead):
        head.prepare()
        if not head.converged_:
            log_message(
                "train: warning: the head did not converge, and its gradient has the norm "
                f"{head.gradient_norm_:.2g}; raise train.head.steps"
            )
