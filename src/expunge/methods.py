"""The table of methods: a name in params.yaml to what fits it. Adding a method is one function and one line at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from expunge.core import (
    AffineMap,
    LinearHead,
    Loft,
    LogitMask,
    Moments,
    RepresentationLinear,
    load_map,
)
from expunge.core.maps import FeatureMap, identity
from expunge.errors import ConfigError
from expunge.features.store import CLASS_SUMS, MOMENTS, FeatureStore
from expunge.files import read_json, read_manifest, write_json

HEAD = "head.safetensors"


@dataclass(frozen=True)
class Request:
    """What a method may look at: the store, the rows, the head. Test rows and retrained models are out of reach."""

    store: FeatureStore
    forget_rows: np.ndarray
    retain_rows: np.ndarray
    head: LinearHead
    forget_classes: list[int]  # classes forgotten as a whole
    saw_forget_data: bool

    @cached_property
    def z_forget(self) -> Tensor:
        return torch.from_numpy(self.store.z(self.forget_rows))

    @cached_property
    def z_retain(self) -> Tensor:
        return torch.from_numpy(self.store.z(self.retain_rows))

    @cached_property
    def forget(self) -> Moments:
        return Moments(self.store.dim).update(self.z_forget)

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
        tensors = load_file(self.store.directory / CLASS_SUMS)
        return tensors["sums"] / tensors["counts"].clamp(min=1)[:, None]

    def classes_to_forget(self, method: str) -> list[int]:
        if not self.forget_classes:
            raise ConfigError(f"params.yaml: methods: {method} forgets whole classes, but this request names rows; take it out of the list")
        return self.forget_classes


@dataclass(frozen=True)
class Unlearned:
    """The result of a method: `logits = head(map(z))`, and what the fit has to say about itself."""

    map: FeatureMap
    head: LinearHead
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def shipped_head(self) -> LinearHead:
        """The head on z that gives the same logits, where the map is affine; else the head on z'."""
        return self.map.fold_into(self.head) if isinstance(self.map, AffineMap) else self.head

    def logits(self, z: Tensor) -> Tensor:
        """`(n, d) -> (n, C)`, computed as it is shipped."""
        return self.shipped_head.logits(z if isinstance(self.map, AffineMap) else self.map(z))

    def save(self, directory: Path) -> None:
        """Write the map, the head as it is shipped and `fit.json` into a directory that is being staged."""
        self.map.save(directory)
        self.head.save(directory / "head_on_map.safetensors")
        self.shipped_head.save(directory / HEAD)
        write_json(directory / "fit.json", self.info)

    @classmethod
    def load(cls, directory: Path | str) -> Unlearned:
        directory = Path(directory)
        read_manifest(directory)
        return cls(load_map(directory), LinearHead.load(directory / "head_on_map.safetensors"), read_json(directory / "fit.json"))


def _loft(request: Request, settings: dict[str, Any]) -> Unlearned:
    loft = _make("loft", Loft, settings).fit(request.retain, request.forget)
    return Unlearned(loft.map_, request.head, {"rank": loft.basis_.shape[1], "objective": float(loft.objective_), "angle": float(loft.angle_)})


def _ru_linear(request: Request, settings: dict[str, Any]) -> Unlearned:
    ru = _make("ru-linear", RepresentationLinear, settings).fit(request.retain, request.forget, head=request.head)
    return Unlearned(ru.map_, request.head, {})


def _logit_mask(request: Request, settings: dict[str, Any]) -> Unlearned:
    if not request.forget_classes:  # nothing to mask: the control is the original itself, and the table shows that
        return Unlearned(identity(request.store.dim), request.head, {"masked": []})
    mask = _make("logit-mask", LogitMask, {"classes": request.forget_classes, **settings}).fit(request.head)
    return Unlearned(identity(request.store.dim), mask.head_, {"masked": request.forget_classes})


def _make(name: str, method: Callable[..., Any], settings: dict[str, Any]) -> Any:
    try:
        return method(**settings)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"params.yaml: fit.{name}: {e}") from None


METHODS: dict[str, Callable[[Request, dict[str, Any]], Unlearned]] = {
    "logit-mask": _logit_mask,
    "loft": _loft,
    "ru-linear": _ru_linear,
}


def fit(name: str, request: Request, settings: dict[str, Any]) -> Unlearned:
    """Fit one method of the table. Raises ConfigError for an unknown name or setting."""
    if name not in METHODS:
        raise ConfigError(f"params.yaml: methods: unknown method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name](request, settings)
