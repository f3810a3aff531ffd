"""Estimate the disk and memory that a run needs, from numbers of rows and sizes, and compare them with the machine."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from expunge.checks.problem import Problem
from expunge.checks.schema import Schema
from expunge.config import Config, entries
from expunge.methods.table import METHODS
from expunge.models.classifier import ABOVE, FROZEN, Classifier
from expunge.models.cut_costs import BYTES, TOKENS
from expunge.models.cut_split import EXAMPLES, CutSplit
from expunge.models.cuts import example
from expunge.system.errors import ConfigError
from expunge.system.paths import ACTIVATIONS, FEATURES, MODELS
from expunge.system.ray_cluster import check_address

FLOAT = 4  # bytes
PROCESS = 600e6  # bytes that a stage uses for Python, torch and pyarrow, measured
CACHED = 2  # copies of an output: DVC keeps another one in its cache unless it is set to link
LIMIT = Path("/sys/fs/cgroup/memory.max")  # memory limit of a container, in bytes


@dataclass(frozen=True)
class Needs:
    """What a run needs on disk and in memory, in bytes.

    `disk`: the bytes that it will write below each folder. `memory`: the largest memory of a stage. `stage`: the name
    of that stage.
    """

    disk: Mapping[str, float]
    memory: float
    stage: str

    def to_json(self) -> dict[str, object]:
        """Return the needs in gigabytes (1e9 bytes)."""
        return {
            "disk_gb": {k: round(v / 1e9, 3) for k, v in self.disk.items()},
            "memory_gb": round(self.memory / 1e9, 2),
            "memory_stage": self.stage,
        }


def needs(config: Config, schema: Schema, classifier: Classifier, splits: Mapping[str, CutSplit]) -> Needs | None:
    """Return an estimate of what a whole run needs; None if the number of rows is not known."""
    if not schema.rows:
        return None
    card, trained = classifier.card, config.model.training in ("full", ABOVE)
    weights = FLOAT * sum(t.numel() for t in classifier.state_dict().values())
    features = schema.rows * card.feature_dim * (FLOAT if config.features.dtype == "fp32" else FLOAT / 2)
    retrained = len(config.retrain.seeds) if config.reference == "retrain" and trained else 0
    kinds = [METHODS[m].kind.facts for n in config.methods for _, m, _ in list(entries(config, n))[:1] if m in METHODS]
    heavy = sum(f.changes == "weights" for f in kinds)
    cuts = config.activations.cuts if config.activations.cuts != "auto" else []
    activation_bytes = sum(
        math.prod(splits[c].shape(TOKENS if schema.texts else None)) * BYTES for c in cuts if c in splits
    )
    disk = {
        str(FEATURES): CACHED * features * (1 + retrained),
        str(MODELS): CACHED * weights * (1 + retrained + heavy),
        str(ACTIVATIONS): float(activation_bytes * schema.train),
    }
    stages: dict[str, float] = {"fit": 2 * schema.rows * card.feature_dim * FLOAT}
    images = math.prod(schema.shape) * schema.rows if schema.shape else 0
    if not torch.cuda.is_available() and config.model.training not in (*FROZEN, "none"):
        stages["train"] = images + 4 * weights + _batch(classifier) * min(config.train.batch_size, schema.train)
    if any({"images", "inputs"} & set(f.needs) for f in kinds):
        stages["fit"] += images + 5 * weights + (0 if torch.cuda.is_available() else _batch(classifier) * 256)
    stage = max(stages, key=stages.__getitem__)
    return Needs(disk, PROCESS + stages[stage], stage)


def resource_problems(need: Needs) -> list[Problem]:
    """Return a problem for disk and for memory if there is too little.

    Existing folders are replaced and are not counted.
    """
    found = []
    wanted = {k: v for k, v in need.disk.items() if v and not Path(k).is_dir()}
    free, total = shutil.disk_usage(Path()).free, sum(wanted.values())
    if total > free:
        parts = ", ".join(f"{k} {v / 1e9:.1f}" for k, v in wanted.items())
        says = f"{total / 1e9:.1f} GB will be written ({parts}), but only {free / 1e9:.1f} GB are free"
        found.append(Problem("disk", says, "use fewer activations.cuts, features.dtype: fp16, or a larger disk"))
    if need.memory > (there := memory()):
        says = f"the {need.stage} stage needs about {need.memory / 1e9:.1f} GB, but there are only {there / 1e9:.1f} GB"
        found.append(Problem("memory", says, "use a smaller train.batch_size or model.image_size, or a larger machine"))
    return found


def compiler_problems(config: Config) -> list[Problem]:
    """Return a problem if `train.compile` is set and this machine lacks what compiling the training needs."""
    lacks = missing_for_compiling()
    if not config.train.compile or config.model.training != "full" or torch.cuda.is_available() or not lacks:
        return []
    way_out = "install g++ and python3-dev, or set train.compile: false"
    return [Problem("train.compile", f"{' and '.join(lacks)} cannot be found", way_out)]


def missing_for_compiling() -> list[str]:
    """Return what `torch.compile` needs on a processor and does not find here."""
    lacks = [] if shutil.which(compiler := os.environ.get("CXX", "g++")) else [f"the compiler {compiler}"]
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        lacks.append("Python's header files")
    return lacks


def cluster_problems(config: Config) -> list[Problem]:
    """Return a problem where an engine is Ray and Ray is not installed, or nothing answers at the cluster's address."""
    asking = [key for key in ("extract", "train") if getattr(config, key).engine == "ray"]
    if asking and importlib.util.find_spec("ray") is None:
        return [
            Problem(f"{key}.engine", "is ray, but Ray is not installed", "run pip install 'expunge[ray]'")
            for key in asking
        ]
    if asking and config.extract.address is not None:
        try:
            check_address(config.extract.address, seconds=2.0)
        except ConfigError as e:
            return [Problem.from_error("extract.address", e)]
    return []


def memory() -> float:
    """Return the memory in bytes of the machine or its container.

    It counts memory that other processes hold now, which may be free during the run.
    """
    there = float(psutil.virtual_memory().total)
    limit = LIMIT.read_text().strip() if LIMIT.is_file() else "max"
    return min(there, float(limit)) if limit.isdigit() else there


@torch.no_grad()
def _batch(classifier: Classifier) -> float:
    """Return the bytes per row that a training step keeps for its backward pass.

    They are the float32 outputs of all layers, and twice the largest output for gradients.
    """
    sizes: list[int] = []

    def count(_module: nn.Module, _given: object, out: object) -> None:
        if isinstance(out, Tensor):
            sizes.append(out.numel())

    leaves = [m for m in classifier.backbone.modules() if not list(m.children())]
    handles = [m.register_forward_hook(count) for m in leaves]
    try:
        classifier.backbone(example(classifier, 1, EXAMPLES[1][1]))
    finally:
        for handle in handles:
            handle.remove()
    return FLOAT * (sum(sizes) + 2 * max(sizes, default=0))
