"""Shadow networks: many trained on all rows and then unlearned, and as many trained on retained rows only.

Each network has a directory below `data/shadow`, such as `trained-0` or `retrained-0`, with its weights in `model` and
its margins in `margins`. Both have a key, a digest of everything that determines them. A run that was interrupted, or
that asks for more models, therefore computes only what is missing.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from expunge.config import Config
from expunge.data.dataset import Dataset
from expunge.data.schema import FORGET, RETAIN, TEST_RETAIN, TRAIN
from expunge.data.split import Split
from expunge.evaluation.rows import thinned
from expunge.evaluation.shadow_scores import ShadowMargins, against, floor
from expunge.evaluation.ulira import margins
from expunge.features.extract import ExtractionSettings, extract
from expunge.features.store import FeatureStore
from expunge.finetune.cut import fetch_activations
from expunge.methods.fitting import fit
from expunge.methods.inputs import FitInputs
from expunge.methods.seeding import seeded
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.checkpoint import load_classifier
from expunge.models.classifier import Classifier
from expunge.shadow.heads import FORGET_ROWS, POPULATION_ROWS
from expunge.system.errors import REFUSALS, ManifestError
from expunge.system.files import digest_of, read_json, read_manifest, staged_dir, write_json, write_manifest
from expunge.system.installed import module_digest
from expunge.system.paths import DATASET, SHADOW, SPLIT, WORK
from expunge.system.progress import log_message
from expunge.training.cut_check import resolve
from expunge.training.recipe import make_classifier

PRODUCER = "expunge.shadow.networks"
MARGINS, KEY = "margins.safetensors", "key.json"
Member = tuple[str, int]  # the side of a network and its number
SIDES = ("trained", "retrained")
RETRAINED_SEEDS = 100_000  # offset of the retrained models' seeds, so that they differ from those of trained ones


@dataclass(frozen=True)
class Job:
    """What all networks of a run share. `forget` and `population` are the scored rows."""

    config: Config
    dataset: Dataset
    split: Split
    forget: np.ndarray
    population: np.ndarray
    out: Path
    work: Path

    @classmethod
    def of_workspace(cls, config: Config) -> Job:
        """Return the job of the run in the current directory."""
        return cls.of(config, Dataset(DATASET, verify=False), Split(SPLIT), SHADOW, WORK)

    @classmethod
    def of(cls, config: Config, dataset: Dataset, split: Split, out: Path, work: Path) -> Job:
        """Select the scored rows and fix the recipe.

        The precision "auto" becomes fp32, because a measured choice could differ between networks.
        """
        rng = np.random.default_rng(config.shadow.seed)
        epochs = config.shadow.epochs or config.train.epochs
        precision = "fp32" if config.train.precision == "auto" else config.train.precision
        recipe = dataclasses.replace(config.train, epochs=epochs, precision=precision)
        forget = thinned(split.scored_rows(FORGET), FORGET_ROWS, rng)
        population = thinned(split.rows(TEST_RETAIN), POPULATION_ROWS, rng)
        return cls(dataclasses.replace(config, train=recipe), dataset, split, forget, population, out, work / "shadow")

    def model_key(self, side: str, seed: int) -> str:
        """Digest of everything that determines the weights of a network."""
        rows = self.split.request["digest"] if side == "retrained" else "all"
        settings = dataclasses.asdict(self.config.model), dataclasses.asdict(self.config.train)
        return digest_of([side, seed, rows, self.dataset.digest, settings, module_digest("expunge.training.recipe")])

    def margins_key(self, side: str, seed: int) -> str:
        """Digest of everything that determines the margins of a network.

        No method is fitted to retrained networks, so their key does not depend on settings of methods.
        """
        fits = (self.config.methods, self.config.fit) if side == "trained" else ()
        parts = [self.model_key(side, seed), self.split.request["digest"], self.config.shadow.seed, fits]
        features = dataclasses.asdict(self.config.features), dataclasses.asdict(self.config.activations)
        return digest_of([*parts, features, module_digest(__name__)])

    def keys(self, side: str, index: int) -> tuple[int, dict[str, str]]:
        """Return the seed of a network, and the keys of its parts."""
        seed = self.config.shadow.seed + index + (RETRAINED_SEEDS if side == "retrained" else 0)
        return seed, {"model": self.model_key(side, seed), "margins": self.margins_key(side, seed)}

    def missing(self, count: int) -> list[Member]:
        """Return the networks, of `count` a side, of which a part is missing or belongs to another run."""
        members = [(side, index) for side in SIDES for index in range(count)]
        return [(s, i) for s, i in members if not _whole(self.out / f"{s}-{i}", "margins", self.keys(s, i)[1])]


def attack_networks(job: Job, count: int) -> dict[str, Any]:
    """Train the missing networks, fit every method to every trained network, and run the attacks.

    Directories of networks beyond `count` are deleted.
    """
    names = {side: [f"{side}-{i}" for i in range(count)] for side in SIDES}
    for old in job.out.glob("*rained-*"):
        if old.name not in [*names["trained"], *names["retrained"]]:
            shutil.rmtree(old)
    sides = {side: [make_member(job, side, i) for i in range(count)] for side in names}

    def side(members: list[dict[str, np.ndarray]], name: str) -> ShadowMargins:
        return ShadowMargins(*(np.stack([m[f"{name}/{rows}"] for m in members]) for rows in ("forget", "population")))

    fits = {name: sum(f"{name}/forget" in member for member in sides["trained"]) for name in job.config.methods}
    seed, group = job.config.shadow.seed, count // 2
    retrained = side(sides["retrained"], "network")
    return {
        "models": {"trained": count, "retrained": count, "had_each_row": count, "per_group": group},
        "rows": {"forget": len(job.forget), "population": len(job.population)},
        "recipe": dataclasses.asdict(job.config.train),
        "references": {
            "original": against(side(sides["trained"], "network"), retrained, group, seed),
            "retrained": floor(retrained, seed),
        },
        "methods": {
            name: {
                "unlearned_by": "fitted to every network",
                **against(side(sides["trained"], name), retrained, group, seed),
            }
            for name, fitted in fits.items()
            if fitted == count
        },
        "not_covered": {
            name: f"its fit was refused on {count - fitted} of {count} networks"
            for name, fitted in fits.items()
            if fitted < count
        },
    }


def make_member(job: Job, side: str, index: int) -> dict[str, np.ndarray]:
    """Margins of one network and of its unlearned versions: `NAME/forget (n,)` and `NAME/population (k,)`.

    NAME is `network` or that of a method. Stored weights and margins with the right key are reused.
    """
    seed, keys = job.keys(side, index)
    directory = job.out / f"{side}-{index}"
    if not _whole(directory, "margins", keys):
        if not _whole(directory, "model", keys):
            rows = job.split.rows(RETAIN)
            if side == "trained":
                rows = np.union1d(rows, job.split.rows(FORGET))
            log_message(f"shadow: training {directory.name} on {len(rows):,} rows")
            make_classifier(job.config, job.dataset, rows, seed, directory / "model", job.work)
            write_json(directory / KEY, {"model": keys["model"]})
        _score(job, directory, side, index)
        write_json(directory / KEY, keys)
    return load_file(directory / "margins" / MARGINS)


def _whole(directory: Path, what: str, keys: dict[str, str]) -> bool:
    """Whether the part `what` of the network exists, is undamaged, and has the right key."""
    if not (directory / KEY).is_file() or read_json(directory / KEY).get(what) != keys[what]:
        return False
    try:
        read_manifest(directory / what)
    except ManifestError as e:
        log_message(f"shadow: {e}; it is computed again")
        return False
    return True


def _score(job: Job, directory: Path, side: str, offset: int) -> None:
    """Compute and store the margins of a network and of its unlearned versions.

    `offset` is added to the seed of every fit, so that the variation between fits is included. A method whose fit is
    refused has no margins.
    """
    classifier = load_classifier(directory / "model")
    labels = job.dataset.labels()
    found: dict[str, np.ndarray] = {}

    def add(name: str, logits: Callable[[np.ndarray], torch.Tensor]) -> None:
        with torch.no_grad():
            for what, rows in (("forget", job.forget), ("population", job.population)):
                found[f"{name}/{what}"] = margins(logits(rows).numpy(), labels[rows]).astype(np.float32)

    add("network", lambda rows: classifier.head(_features(classifier, job, rows)))
    if side == "trained":
        scratch = job.work / directory.name
        request = _request(job, classifier, scratch)
        for name in job.config.methods:
            try:
                unlearned = fit(name, request, seeded(name, job.config.fit, offset))
            except REFUSALS as e:
                log_message(f"shadow: {directory.name}: {e}")
                continue
            log_message(f"shadow: {directory.name}, {name}")
            add(name, lambda rows, u=unlearned: u.logits(_z(u, request.store, job, rows)))  # type: ignore[misc]
        shutil.rmtree(scratch)
    with staged_dir(directory / "margins") as staging:
        save_file(found, staging / MARGINS)
        write_manifest(staging, PRODUCER)


def _request(job: Job, classifier: Classifier, scratch: Path) -> FitInputs:
    """The run's request for another network, with that network's features, Moments and activations in `scratch`."""
    extract(
        classifier, job.dataset, scratch / "features", job.work / "features", ExtractionSettings.of(job.config.features)
    )
    store = FeatureStore(scratch / "features")
    with staged_dir(scratch / "activations") as staging:
        if job.config.activations.cuts:
            rows = np.flatnonzero(store.column("split") == TRAIN)
            inputs = job.dataset.inputs(rows)
            for cut in resolve(job.config, classifier, len(rows)):
                fetch_activations(classifier, inputs, cut, staging / f"{cut}.npy")
        write_manifest(staging, PRODUCER)
    return FitInputs(
        store=store,
        activations_dir=scratch / "activations",
        dataset=job.dataset,
        classifier=classifier,
        forget_rows=job.split.rows(FORGET),
        retain_rows=job.split.rows(RETAIN),
        forget_classes=job.split.request["whole_classes"],
        validation_rows=np.flatnonzero(job.split.validation_mask),
    )


def _z(unlearned: UnlearnedModel, store: FeatureStore, job: Job, rows: np.ndarray) -> torch.Tensor:
    if unlearned.classifier is None:
        return torch.from_numpy(store.z(rows))
    return _features(unlearned.classifier, job, rows)


def _features(classifier: Classifier, job: Job, rows: np.ndarray) -> torch.Tensor:
    size = job.config.features.batch_size
    classifier.eval()
    with torch.no_grad():
        parts = [classifier.features(job.dataset.inputs(rows[i : i + size])).float() for i in range(0, len(rows), size)]
        return torch.cat(parts)
