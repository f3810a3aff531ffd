"""Inputs of a method that is fitted to a request: features, Moments, labels and images, but no test rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from expunge.core import LinearHead, Moments
from expunge.data.dataset import Dataset
from expunge.data.schema import FORGET, TRAIN, UNSEEN
from expunge.data.split import Split
from expunge.data.unseen import usable
from expunge.features.store import CLASS_SUMS, MOMENTS, FeatureStore
from expunge.finetune.relearn import Relearning
from expunge.finetune.rows import Examples, examples
from expunge.finetune.shards import Engine
from expunge.models.checkpoint import load_classifier
from expunge.models.classifier import Classifier
from expunge.system.errors import ConfigError
from expunge.system.files import read_manifest
from expunge.system.paths import ACTIVATIONS, DATASET, FEATURES, FORGOTTEN, MODELS, ORIGINAL, workspace


@dataclass(frozen=True)
class FitInputs:
    """Everything that a method may use. Test rows and retrained models are not among it.

    A request that corrects labels removes no row. Then `retain_rows` are all training rows, `forget_rows` those that
    are corrected, `labels` (and the labels of `dataset`) the corrected labels, and `old_labels` those of the original.
    """

    store: FeatureStore
    activations_dir: Path
    dataset: Dataset
    classifier: Classifier
    forget_rows: np.ndarray
    retain_rows: np.ndarray
    forget_classes: list[int]  # classes forgotten as a whole
    validation_rows: np.ndarray  # retained and forgotten rows held out for choosing settings
    unseen_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # rows the model never saw
    left_out: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # training rows in neither of the two
    model_dir: Path | None = None  # directory of the original, with the state that its training kept for exact deletion
    forgotten_dir: Path | None = None  # directory with the key of the row digests
    new_labels: np.ndarray | None = None  # int32 by dataset row, if the request corrects labels
    engine: Engine | None = None  # runs the training of shards; None: in this process, one after the other
    relearning: Relearning | None = None  # relearns above a cut; None: in this process

    @classmethod
    def of_split(cls, split: Split, engine: Engine | None = None, relearning: Relearning | None = None) -> FitInputs:
        """The request of `split` with the original model of the workspace in the current directory."""
        dataset, new = Dataset(DATASET, verify=False), None
        if split.corrections is not None:
            new = split.labels(dataset.labels())
            dataset = dataset.with_labels(new)
        subjects = dataset.table(["subject"])["subject"].to_pylist() if "subject" in dataset.columns else None
        return cls(
            store=FeatureStore(FEATURES / ORIGINAL),
            activations_dir=ACTIVATIONS,
            dataset=dataset,
            classifier=load_classifier(MODELS / ORIGINAL),
            forget_rows=split.rows(FORGET),
            retain_rows=split.training_rows,
            forget_classes=split.request["whole_classes"],
            validation_rows=np.flatnonzero(split.validation_mask),
            unseen_rows=usable(split.rows(UNSEEN), split.rows(FORGET), subjects),
            model_dir=MODELS / ORIGINAL,
            forgotten_dir=workspace() / FORGOTTEN,
            new_labels=new,
            engine=engine,
            relearning=relearning,
        )

    @cached_property
    def head(self) -> LinearHead:
        """The original's head."""
        return LinearHead.of(self.classifier.head)

    @property
    def corrects(self) -> bool:
        """Whether the request corrects labels instead of removing rows."""
        return self.new_labels is not None

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels after the request, int32 by dataset row."""
        return self.old_labels if self.new_labels is None else self.new_labels

    @cached_property
    def old_labels(self) -> np.ndarray:
        """Labels that the original was trained on, int32 by dataset row."""
        return self.store.column("label")

    @cached_property
    def z_forget(self) -> Tensor:
        """Features `(n, d)` of the forgotten rows."""
        return torch.from_numpy(self.store.z(self.forget_rows))

    @cached_property
    def z_retain(self) -> Tensor:
        """Features `(n, d)` of the retained rows."""
        return torch.from_numpy(self.store.z(self.retain_rows))

    @cached_property
    def train_rows(self) -> np.ndarray:
        """All training rows in dataset order, which is also the order of the rows of `activations`."""
        return np.flatnonzero(self.store.column("split") == TRAIN)

    def among_train(self, rows: np.ndarray) -> np.ndarray:
        """Positions of the training rows `rows` among `train_rows`."""
        return np.searchsorted(self.train_rows, rows)

    @cached_property
    def forget(self) -> Moments:
        """Moments of the forgotten rows."""
        return Moments.of(self.z_forget)

    @cached_property
    def total(self) -> Moments:
        """Moments of all training rows except `left_out`, accumulated when the features were extracted."""
        total = Moments.load(self.store.directory / MOMENTS)
        return total - Moments.of(torch.from_numpy(self.store.z(self.left_out))) if len(self.left_out) else total

    @cached_property
    def retain(self) -> Moments:
        """Moments of the retained rows, computed as `total - forget` without a pass over them."""
        return self.total if self.corrects else self.total - self.forget

    @cached_property
    def class_counts(self) -> Tensor:
        """Number of training rows per class, without `left_out`, `(C,)` int64."""
        counts = load_file(self.store.directory / CLASS_SUMS)["counts"]
        return counts - torch.bincount(torch.from_numpy(self.labels[self.left_out]), minlength=len(counts))

    @cached_property
    def class_means(self) -> Tensor:
        """Mean feature of the training rows per class, without `left_out`, `(C, d)` float64."""
        sums = load_file(self.store.directory / CLASS_SUMS)["sums"]
        if len(self.left_out):
            z = torch.from_numpy(self.store.z(self.left_out)).double()
            sums.index_add_(0, torch.from_numpy(self.labels[self.left_out]), z, alpha=-1)
        return sums / self.class_counts.clamp(min=1)[:, None]

    def examples(self) -> Examples:
        """All inputs in memory, for methods that train weights: see `finetune.rows.examples`."""
        return examples(self.classifier, self.dataset)

    def cut(self, name: str) -> str:
        """The cut that a method asks for; "auto" means the only one with activations.

        Raises ConfigError for "auto" unless there is exactly one.
        """
        if name != "auto":
            return name
        files = list(read_manifest(self.activations_dir, verify=False)["files"])
        if len(files) != 1:
            raise ConfigError(
                f"params.yaml: cut: auto needs exactly one cut in activations.cuts, but there are {len(files)}"
            )
        return str(files[0]).removesuffix(".npy")

    def activations(self, cut: str) -> np.ndarray:
        """Activations behind a cut, `(train rows, ...)` float16, memory-mapped; axes as in finetune/cut.py.

        Raises ConfigError if none are stored for the cut.
        """
        manifest = read_manifest(self.activations_dir, verify=False)
        if f"{cut}.npy" not in manifest["files"]:
            raise ConfigError(
                f"params.yaml: activations.cuts has no {cut!r}; add it, so that its activations are computed"
            )
        mapped: np.ndarray = np.load(self.activations_dir / f"{cut}.npy", mmap_mode="r")
        return mapped

    def whole_classes(self, name: str) -> list[int]:
        """The classes that are forgotten as a whole. Raises ConfigError, naming the entry `name`, if there are none."""
        if not self.forget_classes:
            raise ConfigError(
                f"params.yaml: methods: {name} forgets whole classes, but this request names rows; remove it from "
                "methods"
            )
        return self.forget_classes
