"""What determines the bytes of a feature store, and the shards it is cut into: one plan for every engine."""

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
FORMAT = 2  # of a work directory; raised when the same plan would give other bytes


@dataclass(frozen=True)
class ExtractionSettings:
    """What of params determines the bytes of a store.

    `precision`: the arithmetic of the forward pass, "fp32", or "fp16" and "bf16" by autocast. `dtype`: the numbers on
    disk, "fp32", "fp16" or "bf16". `device`: "cpu" or "cuda". `compile`: "auto" measures once whether torch.compile
    with CUDA graphs pays; it is used on CUDA only.
    """

    batch_size: int
    shard_rows: int
    precision: str = "fp32"
    dtype: str = "fp32"
    device: str = "cpu"
    compile: str = "off"

    @classmethod
    def of(cls, features: Features, elsewhere: bool = False) -> ExtractionSettings:
        """The settings of params. Raises ConfigError where a GPU is asked for and this machine has none.

        `elsewhere`: other machines compute, whose GPUs cannot be seen from here.
        """
        device = features.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not elsewhere and not torch.cuda.is_available():
            raise ConfigError("features.device is cuda, and torch finds no NVIDIA GPU here; set it to auto or cpu")
        return cls(
            features.batch_size,
            features.shard_rows,
            features.precision,
            features.dtype,
            device,
            features.compile if device == "cuda" else "off",
        )


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` of the dataset, in the file `part-{index:05d}.parquet`."""

    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"part-{self.index:05d}"


@dataclass(frozen=True)
class Plan:
    """The shards of one model on one dataset."""

    description: dict[str, Any]
    rows: int
    settings: ExtractionSettings

    @classmethod
    def of(cls, classifier: Classifier, dataset: Dataset, settings: ExtractionSettings) -> Plan:
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
            # What rounding costs is measured on this head's logits and kept with the shards.
            description["head"] = digest_of_tensors(classifier.head.state_dict())
        return cls(description, dataset.rows, settings)

    @cached_property
    def digest(self) -> str:
        return digest_of(self.description)

    @cached_property
    def shards(self) -> list[Shard]:
        starts = range(0, self.rows, self.settings.shard_rows)
        return [Shard(i, a, min(a + self.settings.shard_rows, self.rows)) for i, a in enumerate(starts)]

    def open(self, work_root: Path) -> Path:
        """The work directory of this plan: whoever has the same plan finds the same shards there."""
        work = work_root / self.digest.removeprefix("sha256:")[:16]
        if not (work / PLAN).is_file():
            work.mkdir(parents=True, exist_ok=True)
            # Several processes may open one directory at once: each renames a file of its own.
            mine = work / f"{PLAN}.{uuid.uuid4().hex}.tmp"
            write_json(mine, self.description)
            os.replace(mine, work / PLAN)
        return work
