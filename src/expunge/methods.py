"""The table of methods: from a name in params.yaml to what fits it. Adding a method is one function and one line.

`fit.NAME` holds the settings of `methods: [NAME]`. Three keys are ours: `method` lets several settings of one method
stand beside each other under names of their own, `after` fits another entry first and goes on from its result, and
`choose` lists values of settings to choose from on held-out rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from expunge.choosing import choose_settings
from expunge.core import (
    CertifiedRemoval,
    Esc,
    HeadRefit,
    Leace,
    Loft,
    LogitMask,
    Matched,
    PourP,
    RepresentationLinear,
    RepresentationMlp,
    RepresentationZeroShot,
    Stitch,
    identity,
)
from expunge.errors import ConfigError
from expunge.finetune import FOR_SAMPLES, Seal
from expunge.finetune import METHODS as FINETUNE
from expunge.finetune.relearn import Relearn, features_above
from expunge.request import Request
from expunge.unlearned import Unlearned

Settings = Mapping[str, Any]
STITCHED = 2000  # retained rows that carry a teacher's features over into the original's space


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
        "history": fitted.history_,
    }
    return Unlearned(fitted.map_, request.head, info)


def _ru_linear(name: str, request: Request, settings: Settings, _: Unlearned | None) -> Unlearned:
    fitted = _make(name, RepresentationLinear, settings).fit(request.retain, request.forget, head=request.head)
    info = {"objective": fitted.objective_, "distortion": fitted.distortion_, "history": fitted.history_}
    return Unlearned(fitted.map_, request.head, info)


def _ru_mlp(name: str, request: Request, settings: Settings, _: Unlearned | None) -> Unlearned:
    fitted = _make(name, RepresentationMlp, settings).fit(request.z_retain, request.z_forget, head=request.head)
    info = {"steps": fitted.steps_, "distortion": fitted.distortion_, "history": fitted.history_}
    return Unlearned(fitted.map_, request.head, info)


def _ru_zero_shot(name: str, request: Request, settings: Settings, _: Unlearned | None) -> Unlearned:
    """Retained features stay out of it, as published; class means were kept when the features were fetched."""
    method = _make(name, RepresentationZeroShot, settings)
    forget = request.forget if method.kind == "linear" else request.z_forget
    fitted = method.fit(
        forget, request.head, request.class_counts, request.forget_classes or None, class_means=request.class_means
    )
    info = {"steps": fitted.steps_, "distortion": fitted.distortion_, "history": fitted.history_}
    return Unlearned(fitted.map_, request.head, info)


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
    rows = request.train_rows
    labels = torch.from_numpy(request.labels)
    method = _make(name, CertifiedRemoval, settings)
    z = torch.from_numpy(request.store.z(rows))
    fitted = method.fit(request.head, z, labels[rows], saw_forget_data=request.classifier.card.saw_forget_data)
    fitted.remove(request.z_retain, labels[request.retain_rows], request.z_forget, labels[request.forget_rows])
    info = {"epsilon_spent": fitted.epsilon_spent_, "epsilon": fitted.epsilon, "delta": fitted.delta}
    return Unlearned(fitted.map_, fitted.head_, info)


def _relearn(name: str, request: Request, settings: Settings, _: Unlearned | None) -> Unlearned:
    """The head's logits on retained rows are known from z."""
    method = _make(name, Relearn, settings)
    labels, rows = request.labels[request.train_rows], request.among_train(request.retain_rows)
    logits = request.head.logits(request.z_retain)
    fitted = method.fit(request.classifier, request.activations(method.cut), labels, rows, logits)
    info = {"kept_up_to": method.cut, "targets": method.targets, "history": fitted.history_}
    return Unlearned.of_classifier(fitted.classifier_, info)


def _matched_map(name: str, request: Request, settings: Settings, before: Unlearned | None) -> Unlearned:
    """The teacher shares the layers below its cut with the original, so activations stand for its pictures too."""
    if before is None or before.classifier is None or "kept_up_to" not in before.info:
        raise ConfigError(
            f"params.yaml: fit.{name}: matched-map needs `after`, an entry of method relearn: its teacher"
        )
    teacher, cut = before.classifier, before.info["kept_up_to"]
    stitched = np.linspace(0, len(request.retain_rows) - 1, min(STITCHED, len(request.retain_rows))).astype(int)

    def features(rows: np.ndarray) -> torch.Tensor:
        return features_above(teacher, request.activations(cut), cut, torch.from_numpy(request.among_train(rows)))

    stitch = Stitch().fit(features(request.retain_rows[stitched]), request.z_retain[torch.from_numpy(stitched)])
    t = features(request.forget_rows)
    beliefs = before.head.logits(t).softmax(1)
    fitted = _make(name, Matched, settings).fit(
        request.z_retain, request.z_forget, request.head, beliefs, stitch(t), request.forget_classes
    )
    info = {"stitch_r2": stitch.r2_, "distortion": fitted.distortion_, "history": fitted.history_}
    return Unlearned(fitted.map_, fitted.head_, info)


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
    "matched-map": _matched_map,
    "seal": _seal,
    **{name: partial(_finetune, method=name) for name in FINETUNE},
}


# torch imports its compiler when a process makes its first optimizer: seconds that belong to no method.
DESCENDS = {"relearn", "matched-map", "seal", "ru-mlp", *FINETUNE}


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
    choose = settings.pop("choose", None)
    if method not in METHODS:
        raise ConfigError(f"params.yaml: fit.{name}: unknown method {method!r}; known: {', '.join(METHODS)}")

    def fitted(request: Request, settings: Settings) -> Unlearned:
        before = fit(after, request, table) if after is not None else None
        return METHODS[method](name, request, settings, before)

    if not choose:
        return fitted(request, settings)
    taken, record = choose_settings(name, request, choose, lambda part, more: fitted(part, {**settings, **more}))
    unlearned = fitted(request, {**settings, **taken})
    return dataclasses.replace(unlearned, info={**unlearned.info, "chosen": record})
