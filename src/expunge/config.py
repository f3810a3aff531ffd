"""params.yaml as frozen dataclasses: an unknown, missing or impossible key is an error that names it."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from expunge.evaluation.margins import Margins
from expunge.system.errors import ConfigError

PARAMS = Path("params.yaml")


@dataclass(frozen=True)
class Data:
    source: Literal["fashion-mnist", "digits", "image-folder", "parquet", "npz", "text"]
    path: str | None
    test_fraction: float
    seed: int


@dataclass(frozen=True)
class Model:
    name: str
    training: Literal["full", "head", "none"]
    image_size: int | None
    checkpoint: str | None
    head: str | None
    weights: Literal["public"] | None
    saw_forget_data: bool


@dataclass(frozen=True)
class Train:
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    precision: Literal["auto", "fp32", "bf16"]
    seed: int


@dataclass(frozen=True)
class Features:
    batch_size: int
    shard_rows: int
    precision: Literal["fp32", "fp16", "bf16"]
    dtype: Literal["fp32", "fp16", "bf16"]
    device: Literal["auto", "cpu", "cuda"]
    compile: Literal["auto", "off"]
    layers: str | list[str]

    @property
    def modules(self) -> tuple[str, ...]:
        return (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)


@dataclass(frozen=True)
class Extract:
    """Who computes features; the same bytes whoever does, so no stage of dvc.yaml depends on it."""

    engine: Literal["local", "ray"]
    address: str | None
    workers: int | None


@dataclass(frozen=True)
class Activations:
    cuts: list[str] | Literal["auto"]
    max_gb: float
    max_cost: float


@dataclass(frozen=True)
class Split:
    selector: Literal["classes", "random", "ids", "subjects", "filter"]
    classes: list[int | str]
    fraction: float
    file: str | None
    filter: str | None
    duplicates: Literal["warn", "include", "refuse"]
    validation: float
    seed: int


@dataclass(frozen=True)
class Retrain:
    seeds: list[int]


@dataclass(frozen=True)
class Evaluate:
    seed: int


@dataclass(frozen=True)
class Ensembles:
    """Models per side, for attacks that need many of them; 0 is off."""

    heads: int
    full: int
    epochs: int | None
    seed: int


@dataclass(frozen=True)
class Register:
    name: str | None
    experiment: str | None
    promote_level: Literal["a", "b", "c", "d"]


@dataclass(frozen=True)
class Sweep:
    """Models that remember erased rows."""

    original: Literal["champion", "keep"]
    versions: Literal["remove", "keep"]


@dataclass(frozen=True)
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
    methods: list[str]
    fit: dict[str, dict[str, Any]]
    evaluate: Evaluate
    ensembles: Ensembles
    verdict: Margins
    register: Register
    sweep: Sweep


def load_config(path: Path | str = PARAMS) -> Config:
    """Read and check params.yaml. Raises ConfigError naming the key and, for a misspelling, its neighbour."""
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run from the root of the repository") from None
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}: not valid YAML: {e}") from None
    config: Config = _section(Config, raw, str(path), "")
    _check(config, str(path))
    return config


def _section(cls: type[Any], raw: Any, path: str, prefix: str) -> Any:
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: {prefix.rstrip('.') or 'the file'} must be a mapping, got {raw!r}")
    fields = {f.name for f in dataclasses.fields(cls)}
    for key in raw:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known keys: {', '.join(sorted(fields))}"
            raise ConfigError(f"{path}: unknown key {prefix}{key}; {hint}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name in [f.name for f in dataclasses.fields(cls)]:
        if name not in raw:
            raise ConfigError(
                f"{path}: missing key {prefix}{name}; add it (see the comments in the repository's params.yaml)"
            )
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            values[name] = _section(typing.cast(type[Any], hint), raw[name], path, f"{prefix}{name}.")
        else:
            values[name] = _value(hint, raw[name], f"{path}: {prefix}{name}")
    return cls(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    """Check `value` against a type hint of this file; an int is taken where a float is asked for."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} is {value!r}; it must be one of {', '.join(map(str, args))}")
        return value
    if origin in (types.UnionType, typing.Union):
        for arg in args:
            try:
                return _value(arg, value, where)
            except ConfigError:
                continue
    elif origin is list:
        if isinstance(value, list):
            return [_value(args[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
    elif origin is dict:
        if isinstance(value, dict) and all(isinstance(k, args[0]) for k in value):
            return {k: _value(args[1], v, f"{where}.{k}") for k, v in value.items()}
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    wanted = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise ConfigError(f"{where} is {value!r}; it must be {wanted.replace('NoneType', 'null').replace('None', 'null')}")


def _check(config: Config, path: str) -> None:
    """What a type cannot say."""
    rules = [
        (
            config.data.source in ("fashion-mnist", "digits") or config.data.path is not None,
            "data.path",
            "must name the input of this source",
        ),
        (0 < config.data.test_fraction < 1, "data.test_fraction", "must lie between 0 and 1"),
        (0 < config.split.fraction < 1, "split.fraction", "must lie between 0 and 1"),
        (0 <= config.split.validation <= 0.5, "split.validation", "must lie between 0 and 0.5"),
        (
            config.split.selector not in ("ids", "subjects") or config.split.file is not None,
            "split.file",
            "must name the file of ids or subjects",
        ),
        (
            config.split.selector != "filter" or config.split.filter is not None,
            "split.filter",
            "must be an expression for selector: filter",
        ),
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
        (
            config.model.training != "full" or config.model.saw_forget_data,
            "model.saw_forget_data",
            "must be true when model.training is full: the backbone is trained on every row",
        ),
        (
            len(set(config.retrain.seeds)) == len(config.retrain.seeds) > 0,
            "retrain.seeds",
            "must be a list of different seeds, at least one",
        ),
        (config.activations.max_gb > 0, "activations.max_gb", "must be positive"),
        (0 < config.activations.max_cost <= 1, "activations.max_cost", "must lie in (0, 1]"),
        (config.train.epochs > 0, "train.epochs", "must be positive"),
        (config.train.batch_size > 0, "train.batch_size", "must be positive"),
        (config.features.batch_size > 0, "features.batch_size", "must be positive"),
        (
            config.ensembles.heads == 0 or (config.ensembles.heads >= 8 and config.ensembles.heads % 2 == 0),
            "ensembles.heads",
            "must be 0 (off) or an even number of at least 8: half of the heads had a row",
        ),
        (
            config.ensembles.full == 0 or config.ensembles.full >= 4,
            "ensembles.full",
            "must be 0 (off) or at least 4: an attack fits a distribution to each side",
        ),
        (
            config.ensembles.epochs is None or config.ensembles.epochs > 0,
            "ensembles.epochs",
            "must be positive or null",
        ),
        (config.features.shard_rows > 0, "features.shard_rows", "must be positive"),
        (
            config.extract.workers is None or config.extract.workers > 0,
            "extract.workers",
            "must be positive or null",
        ),
        (0 < len(config.features.modules) == len(set(config.features.modules)), "features.layers", "must name modules"),
        (
            config.features.modules == ("penultimate",) or config.model.training == "head",
            "features.layers",
            "other than penultimate need model.training: head: a new head is trained on them",
        ),
        (
            (config.data.source == "text") == config.model.name.startswith("sentence:"),
            "model.name",
            "must be sentence:NAME-OR-DIR for data.source text, and only there",
        ),
        ("logit-mask" in config.methods, "methods", "must hold logit-mask: the control is always in the table"),
        (len(set(config.methods)) == len(config.methods), "methods", "names a method twice"),
    ]
    for good, key, problem in rules:
        if not good:
            raise ConfigError(f"{path}: {key} {problem}")
    for name in config.methods:
        if name not in config.fit:
            raise ConfigError(
                f"{path}: methods names {name!r}, but fit.{name} is missing; add it ({{}} takes the defaults)"
            )
        _check_cut(config, name, path)
    for name, value in dataclasses.asdict(config.verdict).items():
        if value < 0:
            raise ConfigError(f"{path}: verdict.{name} must not be negative")


def _check_cut(config: Config, name: str, path: str) -> None:
    """The cut that an entry of `fit` relearns above is one whose activations are fetched."""
    settings = config.fit[name] or {}
    after = settings.get("after") or {}
    for method, given in ((settings.get("method", name), settings), (after.get("method"), after)):
        cut, cuts = given.get("cut", "stage1"), config.activations.cuts
        if method == "relearn" and cuts != "auto" and (not cuts if cut == "auto" else cut not in cuts):
            raise ConfigError(
                f"{path}: fit.{name} relearns above {cut!r}, but activations.cuts is {cuts}; add it there"
            )
