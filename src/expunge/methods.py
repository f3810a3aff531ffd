"""The table of methods: from a name in params.yaml to what fits it. Adding a method is one function and one line.

`fit.NAME` holds the settings of `methods: [NAME]`. Two keys are ours: `method` lets several settings of one method
stand beside each other under names of their own, and `after` fits another entry first and goes on from its result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from expunge.core import (
    CertifiedRemoval,
    Esc,
    HeadRefit,
    Leace,
    LinearHead,
    Loft,
    LogitMask,
    Moments,
    PourP,
    RepresentationLinear,
    RepresentationMlp,
    RepresentationZeroShot,
    identity,
)
from expunge.data.dataset import Dataset
from expunge.data.schema import TRAIN
from expunge.errors import ConfigError, DataError
from expunge.features.store import CLASS_SUMS, MOMENTS, FeatureStore
from expunge.files import read_manifest
from expunge.finetune import FOR_SAMPLES, Seal
from expunge.finetune import METHODS as FINETUNE
from expunge.finetune.relearn import Relearn
from expunge.models.classifier import Classifier
from expunge.unlearned import Unlearned

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """What a method may look at. Test rows and retrained models are out of its reach."""

    store: FeatureStore
    activations_dir: Path
    dataset: Dataset
    classifier: Classifier
    forget_rows: np.ndarray
    retain_rows: np.ndarray
    forget_classes: list[int]  # classes forgotten as a whole

    @cached_property
    def head(self) -> LinearHead:
        return LinearHead(self.classifier.head.weight, self.classifier.head.bias)

    @cached_property
    def labels(self) -> np.ndarray:
        """int32, by dataset row."""
        return self.store.column("label")

    @cached_property
    def z_forget(self) -> Tensor:
        return torch.from_numpy(self.store.z(self.forget_rows))

    @cached_property
    def z_retain(self) -> Tensor:
        return torch.from_numpy(self.store.z(self.retain_rows))

    @cached_property
    def forget(self) -> Moments:
        return Moments.of(self.z_forget)

    @cached_property
    def total(self) -> Moments:
        """Of all training rows, accumulated when the features were fetched."""
        return Moments.load(self.store.directory / MOMENTS)

    @cached_property
    def retain(self) -> Moments:
        """`total - forget`: no pass over retained rows."""
        return self.total - self.forget

    @cached_property
    def class_counts(self) -> Tensor:
        """Training rows per class, `(C,)` int64."""
        return load_file(self.store.directory / CLASS_SUMS)["counts"]

    @cached_property
    def class_means(self) -> Tensor:
        """Mean training feature per class, `(C, d)` float64."""
        return load_file(self.store.directory / CLASS_SUMS)["sums"] / self.class_counts.clamp(min=1)[:, None]

    def images(self) -> np.ndarray:
        """All images, uint8 `(n, h, w, c)`, in memory, for methods that train. Raises DataError for mixed sizes."""
        images = self.dataset.images()
        if isinstance(images, list):
            raise DataError(
                f"{self.dataset.directory}: images differ in size; methods that train weights need one size"
            )
        return images

    def activations(self, cut: str) -> np.ndarray:
        """Activations `(train rows, h, w, c)` float16 behind a cut, memory-mapped."""
        manifest = read_manifest(self.activations_dir, verify=False)
        if f"{cut}.npy" not in manifest["files"]:
            raise ConfigError(f"params.yaml: activations.cuts has no {cut!r}; add it, so that they are fetched once")
        mapped: np.ndarray = np.load(self.activations_dir / f"{cut}.npy", mmap_mode="r")
        return mapped

    def whole_classes(self, name: str) -> list[int]:
        if not self.forget_classes:
            raise ConfigError(
                f"params.yaml: methods: {name} forgets whole classes, but this request names rows; remove it there"
            )
        return self.forget_classes


def _logit_mask(name: str, request: Request, settings: Settings, _: Unlearned | None) -> Unlearned:
    if not request.forget_classes:  # nothing to mask: the control is the original itself, and the table shows it
        return Unlearned(identity(request.store.dim), request.head, {"masked": []})
    fitted = _make(name, LogitMask, {"classes": request.forget_classes, **settings}).fit(request.head)
    return Unlearned(fitted.map_, fitted.head_, {"masked": request.forget_classes})


def _loft(name: str, request: Request, settings: Settings, _: Unlearned | None) -> Unlearned:
    fitted = _make(name, Loft, settings).fit(request.retain, request.forget)
    info = {
        "rank": fitted.rank_,
        "objective": fitted.objective_,
        "retained": fitted.retained_,
        "forgotten": fitted.forgotten_,
    }
    return Unlearned(fitted.map_, request.head, info)


def _ru_linear(name: str, request: Request, settings: Settings, _: Unlearned | None) -> Unlearned:
    fitted = _make(name, RepresentationLinear, settings).fit(request.retain, request.forget, head=request.head)
    return Unlearned(fitted.map_, request.head, {"objective": fitted.objective_, "distortion": fitted.distortion_})


def _ru_mlp(name: str, request: Request, settings: Settings, _: Unlearned | None) -> Unlearned:
    fitted = _make(name, RepresentationMlp, settings).fit(request.z_retain, request.z_forget, head=request.head)
    return Unlearned(fitted.map_, request.head, {"steps": fitted.steps_, "distortion": fitted.distortion_})


def _ru_zero_shot(name: str, request: Request, settings: Settings, _: Unlearned | None) -> Unlearned:
    """Retained features stay out of it, as published; class means were kept when the features were fetched."""
    method = _make(name, RepresentationZeroShot, settings)
    forget = request.forget if method.kind == "linear" else request.z_forget
    fitted = method.fit(
        forget, request.head, request.class_counts, request.forget_classes or None, class_means=request.class_means
    )
    return Unlearned(fitted.map_, request.head, {"steps": fitted.steps_, "distortion": fitted.distortion_})


def _leace(name: str, request: Request, settings: Settings, _: Unlearned | None) -> Unlearned:
    return Unlearned(_make(name, Leace, settings).fit(request.retain, request.forget).map_, request.head)


def _pour_p(name: str, request: Request, settings: Settings, _: Unlearned | None) -> Unlearned:
    fitted = _make(name, PourP, settings).fit(request.head, request.whole_classes(name))
    return Unlearned(fitted.map_, request.head)


def _esc(name: str, request: Request, settings: Settings, _: Unlearned | None) -> Unlearned:
    fitted = _make(name, Esc, settings).fit(request.forget)
    return Unlearned(fitted.map_, request.head, {"directions": fitted.rank_})


def _head_refit(name: str, request: Request, settings: Settings, before: Unlearned | None) -> Unlearned:
    map_ = before.map if before is not None else None
    labels = torch.from_numpy(request.labels[request.retain_rows])
    fitted = _make(name, HeadRefit, settings).fit(request.head, request.z_retain, labels, map_)
    return Unlearned(fitted.map_, fitted.head_, {"steps": fitted.steps_, "gradient_norm": fitted.gradient_norm_})


def _certified_removal(name: str, request: Request, settings: Settings, _: Unlearned | None) -> Unlearned:
    """Train the noisy head on every training row, then remove the request from it."""
    rows = np.flatnonzero(request.store.column("split") == TRAIN)
    labels = torch.from_numpy(request.labels)
    method = _make(name, CertifiedRemoval, settings)
    z = torch.from_numpy(request.store.z(rows))
    fitted = method.fit(request.head, z, labels[rows], saw_forget_data=request.classifier.card.saw_forget_data)
    fitted.remove(request.z_retain, labels[request.retain_rows], request.z_forget, labels[request.forget_rows])
    info = {"epsilon_spent": fitted.epsilon_spent_, "epsilon": fitted.epsilon, "delta": fitted.delta}
    return Unlearned(fitted.map_, fitted.head_, info)


def _relearn(name: str, request: Request, settings: Settings, _: Unlearned | None) -> Unlearned:
    """Activations are of training rows only, in dataset order; the head's logits on retained rows are known from z."""
    method = _make(name, Relearn, settings)
    train = np.flatnonzero(request.store.column("split") == TRAIN)
    rows = np.searchsorted(train, request.retain_rows)
    logits = request.head.logits(request.z_retain)
    fitted = method.fit(request.classifier, request.activations(method.cut), request.labels[train], rows, logits)
    info = {"kept_up_to": method.cut, "targets": method.targets, "history": fitted.history_}
    return Unlearned.of_classifier(fitted.classifier_, info)


def _finetune(name: str, request: Request, settings: Settings, _: Unlearned | None, method: str) -> Unlearned:
    if not request.forget_classes:  # rows of classes that stay need gentler settings; what params say goes before
        settings = {**FOR_SAMPLES.get(method, {}), **settings}
    fitted = _make(name, FINETUNE[method], settings)
    fitted.fit(request.classifier, request.images(), request.labels, request.retain_rows, request.forget_rows)
    return Unlearned.of_classifier(fitted.classifier_, {"history": fitted.history_})


def _seal(name: str, request: Request, settings: Settings, before: Unlearned | None) -> Unlearned:
    if before is None:
        raise ConfigError(f"params.yaml: fit.{name}: seal needs `after`, the entry whose map goes into the backbone")
    if before.classifier is not None:
        raise ConfigError(
            f"params.yaml: fit.{name}: `after` changes the backbone itself, so there is no map to seal in"
        )
    fitted = _make(name, Seal, {"map": before.map, **settings})
    fitted.fit(request.classifier, request.images(), request.labels, request.retain_rows, request.forget_rows)
    sealed = Unlearned.of_classifier(fitted.classifier_, {"history": fitted.history_})
    return dataclasses.replace(sealed, head=before.head)


def _make(name: str, method: Callable[..., Any], settings: Settings) -> Any:
    try:
        return method(**settings)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"params.yaml: fit.{name}: {e}") from None


Fit = Callable[[str, Request, Settings, Unlearned | None], Unlearned]
METHODS: dict[str, Fit] = {
    "logit-mask": _logit_mask,
    "loft": _loft,
    "ru-linear": _ru_linear,
    "ru-mlp": _ru_mlp,
    "ru-zero-shot": _ru_zero_shot,
    "leace": _leace,
    "pour-p": _pour_p,
    "esc": _esc,
    "head-refit": _head_refit,
    "certified-removal": _certified_removal,
    "relearn": _relearn,
    "seal": _seal,
    **{name: partial(_finetune, method=name) for name in FINETUNE},
}


# torch imports its compiler when a process makes its first optimizer: seconds that belong to no method.
DESCENDS = {"relearn", "seal", "ru-mlp", *FINETUNE}


def warm_up(name: str, table: Mapping[str, Settings]) -> None:
    """Import what the entry will need, so that its fit can be timed alone."""
    if (table.get(name) or {}).get("method", name) in DESCENDS:
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def fit(name: str, request: Request, table: Mapping[str, Settings]) -> Unlearned:
    """Fit the entry `name` of `table`, the `fit` section of params. Raises ConfigError for what it does not know."""
    if name not in table:
        raise ConfigError(f"params.yaml: fit.{name} is missing; add it ({{}} takes the defaults)")
    settings = dict(table[name] or {})
    method, after = settings.pop("method", name), settings.pop("after", None)
    if method not in METHODS:
        raise ConfigError(f"params.yaml: fit.{name}: unknown method {method!r}; known: {', '.join(METHODS)}")
    before = fit(after, request, table) if after is not None else None
    return METHODS[method](name, request, settings, before)
