"""The sections of params.yaml as frozen pydantic dataclasses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass

from expunge.system.limits import DEFAULTS, PILLOW_PIXELS

# Types of values. They are strict: text is not read as a number, a bool not as an int, a set not as a list. An int is
# accepted for a float.
Count = Annotated[int, Strict(), Field(ge=1, le=100_000)]
Rows = Annotated[int, Strict(), Field(ge=1, le=2**31 - 1)]
BatchSize = Annotated[int, Strict(), Field(ge=1, le=2**20)]
Processes = Annotated[int, Strict(), Field(ge=0, le=64)]
Models = Annotated[int, Strict(), Field(ge=0, le=100_000)]
Seed = Annotated[int, Strict(), Field(ge=0, le=2**32 - 1)]
Index = Annotated[int, Strict()]
Rate = Annotated[float, Strict(), Field(gt=0, le=1000, allow_inf_nan=False)]
Penalty = Annotated[float, Strict(), Field(ge=0, le=1000, allow_inf_nan=False)]
Momentum = Annotated[float, Strict(), Field(ge=0, lt=1, allow_inf_nan=False)]
Share = Annotated[float, Strict(), Field(gt=0, lt=1, allow_inf_nan=False)]
Portion = Annotated[float, Strict(), Field(gt=0, le=1, allow_inf_nan=False)]
Size = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Half = Annotated[float, Strict(), Field(ge=0, le=0.5, allow_inf_nan=False)]
Text = Annotated[str, Strict(), Field(pattern=r"^[^\x00]+$")]
Bool = Annotated[bool, Strict()]
EntryName = Annotated[str, Strict(), Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # part of file names
MetricName = Annotated[str, Strict(), Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]  # part of dotted paths
# The validators are built when a file is first read, because most commands import params and read none.
FORBID = ConfigDict(extra="forbid", defer_build=True)


@dataclass(frozen=True, config=FORBID)
class Data:
    """Where the rows come from, and which of them are for testing."""

    source: Text
    path: Text | None
    test_fraction: Share
    seed: Seed
    root: Text | None
    download: Bool
    columns: dict[Text, Text]
    canaries: Models


@dataclass(frozen=True, config=FORBID)
class Model:
    """The classifier: its architecture, its weights, and which part of it is trained."""

    name: Text
    training: Literal["full", "above", "head", "ridge", "none"]
    cut: Text | None
    shards: Count
    slices: Count
    random_features: Models
    image_size: Count | None
    checkpoint: Text | None
    head: Text | None
    weights: Literal["public"] | None
    saw_forget_data: Bool


@dataclass(frozen=True, config=FORBID)
class Train:
    """Settings of training. null stands for the recipe's value for the model, see `training/settings.py`."""

    recipe: Literal["auto", "small", "finetune"]
    epochs: Count
    batch_size: BatchSize
    lr: Rate | None
    momentum: Momentum | None
    weight_decay: Penalty | None
    optimizer: Text | None
    schedule: Literal["one-cycle", "cosine", "constant"] | None
    warmup: Half | None
    layer_decay: Portion | None
    label_smoothing: Half | None
    ema: Momentum | None
    frozen_norm: Bool | None
    augment: Literal["none", "flip-crop", "randaugment", "trivial"] | None
    accumulate: Count
    compile: Bool
    patience: Count | None
    holdout: Half
    engine: Literal["local", "torchrun", "ray"]
    workers: Count | None
    precision: Literal["auto", "fp32", "bf16"]
    seed: Seed
    head: dict[Text, Any]  # arguments of RidgeHead or SoftmaxHead
    augment_workers: Processes = 0


@dataclass(frozen=True, config=FORBID)
class Features:
    """How features are computed and stored."""

    batch_size: BatchSize
    shard_rows: Rows
    precision: Literal["fp32", "fp16", "bf16"]
    dtype: Literal["fp32", "fp16", "bf16"]
    device: Literal["auto", "cpu", "cuda"]
    compile: Literal["auto", "off"]
    layers: Text | Annotated[list[Text], Strict()]

    @property
    def modules(self) -> tuple[str, ...]:
        """The names in `layers`, also where it is a single one."""
        return (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)


@dataclass(frozen=True, config=FORBID)
class Extract:
    """The engine that computes features. All engines give the same bytes, so no stage of dvc.yaml depends on it."""

    engine: Literal["local", "ray"]
    address: Text | None
    workers: Count | None


@dataclass(frozen=True, config=FORBID)
class Activations:
    """At which cuts activations are stored, and what `auto` may spend on disk and on operations."""

    cuts: Annotated[list[Text], Strict()] | Literal["auto"]
    max_gb: Size
    max_cost: Portion


@dataclass(frozen=True, config=FORBID)
class Split:
    """The erasure request: which training rows are forgotten, and which are set apart."""

    selector: Literal["classes", "random", "memorised", "canaries", "ids", "subjects", "filter", "correct"]
    classes: Annotated[list[Index | Text], Strict()]
    fraction: Share
    file: Text | None
    filter: Text | None
    duplicates: Literal["warn", "include", "refuse"]
    near_duplicates: Literal["warn", "include", "refuse", "ignore"]
    validation: Half
    unseen: Half
    seed: Seed
    more_than_half: Bool = False


@dataclass(frozen=True, config=FORBID)
class Retrain:
    """The seeds of the retrained models, one model per seed."""

    seeds: Annotated[list[Seed], Strict()]


@dataclass(frozen=True, config=FORBID)
class Evaluate:
    """The seed of the evaluation, and the metrics of other packages to compute."""

    seed: Seed
    metrics: Annotated[list[MetricName], Strict()]  # declared by other packages


@dataclass(frozen=True, config=FORBID)
class Shadow:
    """Numbers of models per side for attacks with shadow models; 0 is off."""

    heads: Models
    networks: Models
    epochs: Count | None
    seed: Seed


@dataclass(frozen=True, config=FORBID)
class Register:
    """Names in MLflow, where null derives them from data and model, and the least claim that may serve."""

    name: Text | None
    experiment: Text | None
    promote_level: Literal["outputs", "features", "backbone", "exact"]


@dataclass(frozen=True, config=FORBID)
class Sweep:
    """What a sweep does with models that were trained on erased rows."""

    original: Literal["champion", "keep"]
    versions: Literal["remove", "keep"]


@dataclass(frozen=True, config=FORBID)
class Limits:
    """How large files from outside may be. Limits change no result, so no stage of dvc.yaml depends on them."""

    pixels: Annotated[int, Strict(), Field(ge=1, le=PILLOW_PIXELS)] = DEFAULTS.pixels
    characters: Rows = DEFAULTS.characters
    archive_gib: Count = DEFAULTS.archive_gib
    list_mib: Count = DEFAULTS.list_mib
    list_values: Rows = DEFAULTS.list_values


@dataclass(frozen=True, config=FORBID)
class Config:
    """The whole of params.yaml. `fit` maps the name of an entry to its settings."""

    data: Data
    model: Model
    train: Train
    features: Features
    extract: Extract
    activations: Activations
    split: Split
    reference: Literal["retrain", "skip"]
    retrain: Retrain
    methods: Annotated[list[EntryName], Strict()]
    fit: Annotated[dict[EntryName, Annotated[dict[Text, Any], Strict()]], Strict()]
    evaluate: Evaluate
    shadow: Shadow
    register: Register
    sweep: Sweep
    limits: Limits = Field(default_factory=Limits)
