"""The table of methods, from a name in params.yaml to the function that fits it.

A new method needs one function and one line here. Methods of other packages are found by their entry points
(methods/method.py).

`fit.NAME` holds the settings of the entry NAME in `methods`. Five keys are not passed to the method. `method`: the
method's name, so that one method can have several entries with different settings. `after`: a method with its settings
that is fitted first; the entry starts from its result. `choose`: lists of values to choose from on held-out rows, see
`selection.py`. `max_drop`: the accuracy on held-out retained rows that the entry may lose before it is refused, see
`utility.py`. `fit_seeds`: the number of fits with different seeds whose spread the intervals of the verdict include,
see `seeding.py`.
"""

from __future__ import annotations

import dataclasses
import inspect
from functools import partial
from typing import Any

import numpy as np
import torch

from expunge.config import DEFAULT_CUT
from expunge.core import (
    CertifiedRemoval,
    Esc,
    HeadRefit,
    Leace,
    Loft,
    LogitMask,
    Moments,
    PourP,
    RepresentationLinear,
    RepresentationMlp,
    RepresentationZeroShot,
    RepresentationZeroShotMlp,
    RidgeHead,
    Stitch,
    TeacherMap,
    identity,
)
from expunge.core.influence import FirstOrder, SecondOrder
from expunge.core.tilted import Tilt
from expunge.finetune import METHODS as FINETUNE
from expunge.finetune import OracleMatch, RidgeOracle, Seal
from expunge.finetune.loop import Updater
from expunge.finetune.relearn import Relearn, features_above
from expunge.methods.certified import remove_certified
from expunge.methods.correcting import by_influence, taught
from expunge.methods.exact import delete_exactly
from expunge.methods.exact_above import delete_above
from expunge.methods.exact_heads import delete_from_heads, in_shards
from expunge.methods.exact_shards import delete_from_shards
from expunge.methods.inputs import FitInputs
from expunge.methods.method import After, Method, Settings, make
from expunge.methods.oracles import oracle_after
from expunge.methods.tilt_strength import Teach, with_beta
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.classifier import ABOVE
from expunge.system.errors import ConfigError

STITCHED = 2000  # retained rows from which the map of a teacher's features into the original's space is fitted


def _logit_mask(name: str, request: FitInputs, settings: Settings, _: UnlearnedModel | None) -> UnlearnedModel:
    if not request.forget_classes:  # without a whole class there is nothing to mask, and the control is the original
        return UnlearnedModel(identity(request.store.dim), request.head, {"masked": []})
    fitted = make(name, LogitMask, {"classes": request.forget_classes, **settings}).fit(request.head)
    return UnlearnedModel(fitted.map_, fitted.head_, {"masked": request.forget_classes})


def _loft(name: str, request: FitInputs, settings: Settings, _: UnlearnedModel | None) -> UnlearnedModel:
    fitted = make(name, Loft, settings).fit(request.retain, request.forget)
    info = {
        "rank": fitted.rank_,
        "objective": fitted.objective_,
        "retained": fitted.retained_,
        "forgotten": fitted.forgotten_,
        "history": fitted.history_,
    }
    return UnlearnedModel(fitted.map_, request.head, info)


def _ru_linear(name: str, request: FitInputs, settings: Settings, _: UnlearnedModel | None) -> UnlearnedModel:
    fitted = make(name, RepresentationLinear, settings).fit(request.retain, request.forget, head=request.head)
    info = {"objective": fitted.objective_, "distortion": fitted.distortion_, "history": fitted.history_}
    return UnlearnedModel(fitted.map_, request.head, info)


def _ru_mlp(name: str, request: FitInputs, settings: Settings, _: UnlearnedModel | None) -> UnlearnedModel:
    fitted = make(name, RepresentationMlp, settings).fit(request.z_retain, request.z_forget, head=request.head)
    info = {"steps": fitted.steps_, "distortion": fitted.distortion_, "history": fitted.history_}
    return UnlearnedModel(fitted.map_, request.head, info)


def _ru_zero_shot(name: str, request: FitInputs, settings: Settings, _: UnlearnedModel | None) -> UnlearnedModel:
    return _zero_shot(make(name, RepresentationZeroShot, settings), request, request.forget)


def _ru_zero_shot_mlp(name: str, request: FitInputs, settings: Settings, _: UnlearnedModel | None) -> UnlearnedModel:
    return _zero_shot(make(name, RepresentationZeroShotMlp, settings), request, request.z_forget)


def _zero_shot(method: Any, request: FitInputs, forget: Moments | torch.Tensor) -> UnlearnedModel:
    """Fit without retained features, as published; class means were stored when the features were extracted."""
    fitted = method.fit(
        forget, request.head, request.class_counts, request.forget_classes or None, class_means=request.class_means
    )
    info = {"steps": fitted.steps_, "distortion": fitted.distortion_, "history": fitted.history_}
    return UnlearnedModel(fitted.map_, request.head, info)


def _leace(name: str, request: FitInputs, settings: Settings, _: UnlearnedModel | None) -> UnlearnedModel:
    return UnlearnedModel(make(name, Leace, settings).fit(request.retain, request.forget).map_, request.head)


def _pour_p(name: str, request: FitInputs, settings: Settings, _: UnlearnedModel | None) -> UnlearnedModel:
    fitted = make(name, PourP, settings).fit(request.head, request.whole_classes(name))
    return UnlearnedModel(fitted.map_, request.head)


def _esc(name: str, request: FitInputs, settings: Settings, _: UnlearnedModel | None) -> UnlearnedModel:
    fitted = make(name, Esc, settings).fit(request.forget)
    return UnlearnedModel(fitted.map_, request.head, {"directions": fitted.rank_})


def _head_refit(name: str, request: FitInputs, settings: Settings, before: UnlearnedModel | None) -> UnlearnedModel:
    if before is not None and before.classifier is not None:
        raise ConfigError(
            f"params.yaml: fit.{name}: `after` changes the backbone, and head-refit works on the original's features"
        )
    map_ = before.map if before is not None else None
    labels = torch.from_numpy(request.labels[request.retain_rows])
    fitted = make(name, HeadRefit, settings).fit(request.head, request.z_retain, labels, map_)
    return UnlearnedModel(fitted.map_, fitted.head_, {"steps": fitted.steps_, "gradient_norm": fitted.gradient_norm_})


def _exact(name: str, request: FitInputs, settings: Settings, _: UnlearnedModel | None) -> UnlearnedModel:
    if settings:
        raise ConfigError(f"params.yaml: fit.{name}: exact takes no settings; the settings of the model are in train")
    card = request.classifier.card
    if card.above and "shards" in card.above:
        return delete_from_shards(request)
    if card.training == ABOVE:
        return delete_above(request)
    return delete_from_heads(request) if in_shards(request) else delete_exactly(request)


def _certified_removal(name: str, request: FitInputs, settings: Settings, _: UnlearnedModel | None) -> UnlearnedModel:
    return remove_certified(make(name, CertifiedRemoval, settings), request)


def _relearn(name: str, request: FitInputs, settings: Settings, _: UnlearnedModel | None) -> UnlearnedModel:
    """Relearn the layers above the cut; the original's logits on retained rows are computed from the stored z."""
    settings = taught(name, request, settings)
    method = make(name, Relearn, {**settings, "cut": request.cut(settings.get("cut", DEFAULT_CUT))})
    labels, rows = request.labels[request.train_rows], request.among_train(request.retain_rows)
    logits = request.head.logits(request.z_retain)
    relearn = request.relearning or Relearn.fit
    fitted = relearn(method, request.classifier, request.activations(method.cut), labels, rows, logits)
    info = {"kept_up_to": method.cut, "targets": method.targets, "history": fitted.history_}
    return UnlearnedModel.of_classifier(fitted.classifier_, info)


def _teacher_map(name: str, request: FitInputs, settings: Settings, before: UnlearnedModel | None) -> UnlearnedModel:
    """Fit a map and head to a relearned teacher.

    The teacher shares the layers below its cut with the original, so its features are computed from stored activations.
    """
    if before is None or before.classifier is None or "kept_up_to" not in before.info:
        raise ConfigError(
            f"params.yaml: fit.{name}: teacher-map needs a teacher; write `after: {{method: relearn, ...}}`"
        )
    teacher, cut = before.classifier, before.info["kept_up_to"]
    stitched = np.linspace(0, len(request.retain_rows) - 1, min(STITCHED, len(request.retain_rows))).astype(int)

    def features(rows: np.ndarray) -> torch.Tensor:
        return features_above(teacher, request.activations(cut), cut, torch.from_numpy(request.among_train(rows)))

    stitch = Stitch().fit(features(request.retain_rows[stitched]), request.z_retain[torch.from_numpy(stitched)])
    t = features(request.forget_rows)
    teacher_probabilities = before.head.logits(t).softmax(1)
    fitted = make(name, TeacherMap, settings).fit(
        request.z_retain, request.z_forget, request.head, teacher_probabilities, stitch(t), request.forget_classes
    )
    info = {"stitch_r2": stitch.r2_, "distortion": fitted.distortion_, "history": fitted.history_}
    return UnlearnedModel(fitted.map_, fitted.head_, info)


def _finetune(
    name: str, request: FitInputs, settings: Settings, _: UnlearnedModel | None, method: str
) -> UnlearnedModel:
    kind = FINETUNE[method]
    if not request.forget_classes:  # settings in params take precedence
        settings = {**kind.for_rows, **settings}
    if "targets" in inspect.signature(kind).parameters:
        settings = taught(name, request, settings)
    if settings.get("cut") is not None:  # short-retrain takes the budget of relearning above it
        settings = {**settings, "cut": request.cut(settings["cut"])}
    fitted = make(name, kind, settings)
    rows: tuple[np.ndarray | None, ...] = (request.retain_rows, None if request.corrects else request.forget_rows)
    if isinstance(fitted, Updater):
        rows = (*rows, request.unseen_rows)
    fitted.fit(request.classifier, request.examples(), request.labels, *rows)
    return UnlearnedModel.of_classifier(fitted.classifier_, {"history": fitted.history_})


def _oracle_match(name: str, request: FitInputs, settings: Settings, before: UnlearnedModel | None) -> UnlearnedModel:
    fitted = make(name, OracleMatch, {"oracle": oracle_after(name, before), **settings})
    fitted.fit(request.classifier, request.examples(), request.labels, request.retain_rows, request.forget_rows)
    return UnlearnedModel.of_classifier(fitted.classifier_, {"history": fitted.history_})


def _teach(name: str) -> Teach:
    return lambda request, settings: _relearn(name, request, settings, None)


def _trew(name: str, request: FitInputs, settings: Settings, before: UnlearnedModel | None) -> UnlearnedModel:
    return _finetune(name, request, with_beta(name, request, settings, _teach(name)), before, "trew")


def _tilt(name: str, request: FitInputs, settings: Settings, _: UnlearnedModel | None) -> UnlearnedModel:
    classes = request.whole_classes(name)
    settings = with_beta(name, request, settings, _teach(name))
    fitted = make(name, Tilt, {"classes": classes, **settings}).fit(request.head)
    return UnlearnedModel(fitted.map_, fitted.head_, {"masked": classes})


def _seal(name: str, request: FitInputs, settings: Settings, before: UnlearnedModel | None) -> UnlearnedModel:
    if before is None:
        raise ConfigError(
            f"params.yaml: fit.{name}: seal needs a map to seal into the backbone; write `after: {{method: ...}}`"
        )
    if before.classifier is not None:
        raise ConfigError(
            f"params.yaml: fit.{name}: `after` changes the backbone itself, so there is no map to seal into it; name "
            "a map in `after`"
        )
    fitted = make(name, Seal, {"map": before.map, **settings})
    fitted.fit(request.classifier, request.examples(), request.labels, request.retain_rows, request.forget_rows)
    sealed = UnlearnedModel.of_classifier(fitted.classifier_, {"history": fitted.history_})
    return dataclasses.replace(sealed, head=before.head)


METHODS: dict[str, Method] = {
    "logit-mask": Method(LogitMask, _logit_mask, filled={"classes": [0]}),
    "tilt": Method(Tilt, _tilt, filled={"classes": [0]}, by_teacher=("beta",)),
    "loft": Method(Loft, _loft),
    "ru-linear": Method(RepresentationLinear, _ru_linear),
    "ru-mlp": Method(RepresentationMlp, _ru_mlp),
    "ru-zero-shot": Method(RepresentationZeroShot, _ru_zero_shot),
    "ru-zero-shot-mlp": Method(RepresentationZeroShotMlp, _ru_zero_shot_mlp),
    "leace": Method(Leace, _leace),
    "pour-p": Method(PourP, _pour_p),
    "esc": Method(Esc, _esc),
    "head-refit": Method(HeadRefit, _head_refit, After.optional),
    "exact": Method(RidgeHead, _exact),  # or SoftmaxHead or Relearn, depending on how the model was trained
    "first-order": Method(FirstOrder, partial(by_influence, method=FirstOrder)),
    "second-order": Method(SecondOrder, partial(by_influence, method=SecondOrder)),
    "certified-removal": Method(CertifiedRemoval, _certified_removal),
    "relearn": Method(Relearn, _relearn),
    "teacher-map": Method(TeacherMap, _teacher_map, After.required),
    "seal": Method(Seal, _seal, After.required, filled={"map": identity(1)}),
    "oracle-match": Method(OracleMatch, _oracle_match, After.optional, filled={"oracle": RidgeOracle()}),
    **{name: Method(kind, partial(_finetune, method=name)) for name, kind in FINETUNE.items()},
    "trew": Method(FINETUNE["trew"], _trew, by_teacher=("beta",)),
}
