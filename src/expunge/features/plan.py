"""The plan of an extraction: what determines the bytes of a feature store, and its division into shards."""

from __future__ import annotations

import os
import uuid
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from expunge.config import Features
from expunge.data.dataset import Dataset
from expunge.features.store import STORAGE_TYPES
from expunge.models.checkpoint import backbone_digest, digest_of_tensors
from expunge.models.classifier import Classifier
from expunge.system.errors import ConfigError
from expunge.system.files import digest_of, write_json

PLAN = "plan.json"
FORMAT = 2  # of a work directory; increased when the same plan would give other bytes


@dataclass(frozen=True)
class ExtractionSettings:
    """The settings of params that determine the bytes of a store.

    `precision` is that of the forward pass: "fp32", or by autocast "fp16" or "bf16". `dtype` is the number type on
    disk: "fp32", "fp16" or "bf16". `device` is "cpu" or "cuda". `compile` "auto" measures once whether torch.compile
    with CUDA graphs is faster; it applies to CUDA only.
    """

    batch_size: int
    shard_rows: int
    precision: str = "fp32"
    dtype: str = "fp32"
    device: str = "cpu"
    compile: str = "off"

    @classmethod
    def of(cls, features: Features, elsewhere: bool = False) -> ExtractionSettings:
        """Read the settings of params. Raises ConfigError if the device is "cuda" and this machine has no GPU.

        That check is omitted with `elsewhere`: other machines compute, and this one cannot see their GPUs.
        """
        device = features.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not elsewhere and not torch.cuda.is_available():
            raise ConfigError("features.device is cuda, but torch finds no NVIDIA GPU; set it to auto or cpu")
        return cls(
            features.batch_size,
            features.shard_rows,
            features.precision,
            features.dtype,
            device,
            features.compile if device == "cuda" else "off",
        )


@dataclass(frozen=True)
class FeatureShard:
    """Rows `start` to `stop` (exclusive) of the dataset, in the file `part-{index:05d}.parquet`."""

    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The name of the shard's file without its ending."""
        return f"part-{self.index:05d}"


@dataclass(frozen=True)
class ExtractionPlan:
    """The shards of one model on one dataset. `description` has everything that determines their bytes."""

    description: dict[str, Any]
    rows: int
    settings: ExtractionSettings

    @classmethod
    def of(cls, classifier: Classifier, dataset: Dataset, settings: ExtractionSettings) -> ExtractionPlan:
        """Return the plan for a model and a dataset. Raises ConfigError for an unknown `features.dtype`."""
        description = {
            "format": FORMAT,
            "backbone": backbone_digest(classifier),
            "dataset": dataset.digest,
            "preprocess": classifier.preprocess.to_json(),
            **asdict(settings),
        }
        if settings.dtype not in STORAGE_TYPES:
            raise ConfigError(f"features.dtype is {settings.dtype!r}; it must be one of {', '.join(STORAGE_TYPES)}")
        if settings.dtype != "fp32":
            # The effect of rounding is measured on the logits of this head and stored with the shards.
            description["head"] = digest_of_tensors(classifier.head.state_dict())
        return cls(description, dataset.rows, settings)

    @cached_property
    def digest(self) -> str:
        """The digest of the description."""
        return digest_of(self.description)

    @cached_property
    def shards(self) -> list[FeatureShard]:
        """The shards in the order of the dataset."""
        starts = range(0, self.rows, self.settings.shard_rows)
        return [FeatureShard(i, a, min(a + self.settings.shard_rows, self.rows)) for i, a in enumerate(starts)]

    def open(self, work_root: Path) -> Path:
        """Return the work directory of this plan; create it unless an earlier run with the same plan did."""
        work = work_root / self.digest.removeprefix("sha256:")[:16]
        if not (work / PLAN).is_file():
            work.mkdir(parents=True, exist_ok=True)
            # Several processes may open the directory at the same time, so each renames its own temporary file.
            mine = work / f"{PLAN}.{uuid.uuid4().hex}.tmp"
            write_json(mine, self.description)
            os.replace(mine, work / PLAN)
        return work
