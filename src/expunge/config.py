"""params.yaml as frozen pydantic dataclasses: an unknown, missing or impossible key is an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from expunge.system.errors import ConfigError
from expunge.system.old_keys import RENAMED, refuse_old_keys
from expunge.system.safe_yaml import read_mapping, shown
from expunge.system.validation import check_plain, explain
from expunge.system.values import (
    BatchSize,
    Bool,
    Count,
    EntryName,
    Half,
    Index,
    Models,
    Momentum,
    Penalty,
    Portion,
    Rate,
    Rows,
    Seed,
    Share,
    Size,
    Text,
)

PARAMS = Path("params.yaml")
SOURCES = ("fashion-mnist", "digits", "fortunes", "emoji", "image-folder", "parquet", "npz", "text")
NAMED = ("torchvision:", "hf:")
FORBID = ConfigDict(extra="forbid")
NO_SHARDS = "is for model.training: above, head or ridge; set it to 1"


@dataclass(frozen=True, config=FORBID)
class Data:
    source: Text
    path: Text | None
    test_fraction: Share
    seed: Seed
    root: Text | None
    download: Bool
    columns: dict[Text, Text]


@dataclass(frozen=True, config=FORBID)
class Model:
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
    epochs: Count
    batch_size: BatchSize
    lr: Rate
    momentum: Momentum
    weight_decay: Penalty
    precision: Literal["auto", "fp32", "bf16"]
    seed: Seed
    head: dict[Text, Any]  # arguments of RidgeHead or SoftmaxHead


@dataclass(frozen=True, config=FORBID)
class Features:
    batch_size: BatchSize
    shard_rows: Rows
    precision: Literal["fp32", "fp16", "bf16"]
    dtype: Literal["fp32", "fp16", "bf16"]
    device: Literal["auto", "cpu", "cuda"]
    compile: Literal["auto", "off"]
    layers: Text | Annotated[list[Text], Strict()]

    @property
    def modules(self) -> tuple[str, ...]:
        return (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)


@dataclass(frozen=True, config=FORBID)
class Extract:
    """Who computes features; the same bytes whoever does, so no stage of dvc.yaml depends on it."""

    engine: Literal["local", "ray"]
    address: Text | None
    workers: Count | None


@dataclass(frozen=True, config=FORBID)
class Activations:
    cuts: Annotated[list[Text], Strict()] | Literal["auto"]
    max_gb: Size
    max_cost: Portion


@dataclass(frozen=True, config=FORBID)
class Split:
    selector: Literal["classes", "random", "memorised", "ids", "subjects", "filter"]
    classes: Annotated[list[Index | Text], Strict()]
    fraction: Share
    file: Text | None
    filter: Text | None
    duplicates: Literal["warn", "include", "refuse"]
    near_duplicates: Literal["warn", "include", "refuse", "ignore"]
    validation: Half
    seed: Seed


@dataclass(frozen=True, config=FORBID)
class Retrain:
    seeds: Annotated[list[Seed], Strict()]


@dataclass(frozen=True, config=FORBID)
class Evaluate:
    seed: Seed


@dataclass(frozen=True, config=FORBID)
class Shadow:
    """Models per side, for attacks that need many of them; 0 is off."""

    heads: Models
    networks: Models
    epochs: Count | None
    seed: Seed


@dataclass(frozen=True, config=FORBID)
class Register:
    name: Text | None
    experiment: Text | None
    promote_level: Literal["outputs", "features", "backbone", "exact"]


@dataclass(frozen=True, config=FORBID)
class Sweep:
    """Models that remember erased rows."""

    original: Literal["champion", "keep"]
    versions: Literal["remove", "keep"]


@dataclass(frozen=True, config=FORBID)
class Config:
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


def load_config(path: Path | str = PARAMS) -> Config:
    """Read and check params.yaml. Raises ConfigError naming the key and, for a misspelling, its neighbour."""
    raw = read_mapping(Path(path))
    refuse_old_keys(raw, str(path))
    try:
        config = _ADAPTER.validate_python(raw)
    except ValidationError as e:
        raise ConfigError(f"{path}: {explain(e, raw, Config)}") from None
    _check(config, str(path))
    return config


_ADAPTER = TypeAdapter(Config)


def _check(config: Config, path: str) -> None:
    """What a type cannot say."""
    model, cuts, above = config.model, config.activations.cuts, config.model.training == "above"
    held, ask = cuts != "auto" and model.cut in cuts, config.split
    rules = [
        (
            config.data.source.startswith(NAMED) or config.data.source in SOURCES,
            "data.source",
            f"is {config.data.source!r}; it must be one of {', '.join(SOURCES)}, torchvision:NAME, hf:NAME",
        ),
        (
            config.data.source.startswith(NAMED)
            or config.data.source in ("fashion-mnist", "digits", "fortunes", "emoji")
            or config.data.path is not None,
            "data.path",
            "must name the input of this source",
        ),
        (
            config.data.source.startswith("torchvision:") or not (config.data.root or config.data.download),
            "data.root and data.download",
            "are for data.source torchvision:NAME",
        ),
        (config.data.source.startswith("hf:") or not config.data.columns, "data.columns", "is for data.source hf:NAME"),
        (
            ask.selector not in ("ids", "subjects") or ask.file is not None,
            "split.file",
            "must name the file of ids or subjects",
        ),
        (ask.selector != "filter" or bool(ask.filter), "split.filter", "must be an expression for selector: filter"),
        (
            config.model.training != "none" or config.model.checkpoint is not None,
            "model.checkpoint",
            "must name the weights when model.training is none",
        ),
        (
            config.model.training != "none" or config.reference == "skip",
            "reference",
            "must be skip when model.training is none: there is no recipe to retrain by",
        ),
        (model.training != "full" or model.saw_forget_data, "model.saw_forget_data", "must be true for training: full"),
        (not above or model.cut is not None, "model.cut", "must name a module of `expunge cuts` for training: above"),
        (model.shards == 1 or model.training not in ("full", "none"), "model.shards", NO_SHARDS),
        (
            model.random_features == 0 or model.training in ("ridge", "head"),
            "model.random_features",
            "is for model.training: ridge or head; set it to 0",
        ),
        (above or model.slices == 1, "model.slices", "is for model.training: above; set it to 1"),
        (above or model.cut is None, "model.cut", "is for model.training: above; set it to null"),
        (not above or model.weights == "public", "model.weights", "must be public when model.training is above"),
        (not above or not model.saw_forget_data, "model.saw_forget_data", "must be false when training is above"),
        (not above or held, "activations.cuts", f"must hold {shown(model.cut)}, model.cut"),
        (
            len(set(config.retrain.seeds)) == len(config.retrain.seeds) > 0,
            "retrain.seeds",
            "must be a list of different seeds, at least one",
        ),
        (config.model.training in ("head", "ridge") or not config.train.head, "train.head", "wants a frozen backbone"),
        (
            config.shadow.heads == 0 or (config.shadow.heads >= 8 and config.shadow.heads % 2 == 0),
            "shadow.heads",
            "must be 0 (off) or an even number of at least 8: half of the heads had a row",
        ),
        (
            config.shadow.networks == 0 or config.shadow.networks >= 4,
            "shadow.networks",
            "must be 0 (off) or at least 4: an attack fits a distribution to each side",
        ),
        (0 < len(config.features.modules) == len(set(config.features.modules)), "features.layers", "must name modules"),
        (
            config.features.modules == ("penultimate",) or config.model.training in ("head", "ridge"),
            "features.layers",
            "other than penultimate need model.training: head or ridge: a new head is trained on them",
        ),
        (
            config.data.source.startswith("hf:")
            or (config.data.source in ("text", "fortunes")) == config.model.name.startswith("sentence:"),
            "model.name",
            "must be sentence:NAME-OR-DIR for data.source text and fortunes, and only there",
        ),
        ("logit-mask" in config.methods, "methods", "must hold logit-mask: the control is always in the table"),
        (len(set(config.methods)) == len(config.methods), "methods", "names a method twice"),
    ]
    for good, key, problem in rules:
        if not good:
            raise ConfigError(f"{path}: {key} {problem}")
    for name in config.methods:
        if name not in config.fit:
            new = RENAMED.get(f"fit.{name}")
            advice = f"it is called {new} now" if new else "add it ({} takes the defaults)"
            raise ConfigError(f"{path}: methods names {name!r}, but fit.{name} is missing; {advice}")
        _check_cut(config, name, path)
    for name, settings in config.fit.items():
        check_plain(settings, f"{path}: fit.{name}")
    check_plain(config.train.head, f"{path}: train.head")


def _check_cut(config: Config, name: str, path: str) -> None:
    """The cut that an entry of `fit` relearns above is one whose activations are fetched."""
    settings = config.fit[name] or {}
    after = settings.get("after") or {}
    if not isinstance(after, dict):
        raise ConfigError(f"{path}: fit.{name}.after must be like {{method: ru-linear}}, not {shown(after)}")
    for method, given in ((settings.get("method", name), settings), (after.get("method"), after)):
        cut, cuts = given.get("cut", "stage1"), config.activations.cuts
        if method == "relearn" and cuts != "auto" and (not cuts if cut == "auto" else cut not in cuts):
            raise ConfigError(
                f"{path}: fit.{name} relearns above {shown(cut)}, but activations.cuts is {shown(cuts)}; add it there"
            )
