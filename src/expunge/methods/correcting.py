"""What a correction of labels asks of a method: that it can teach another label, and does not learn the old ones."""

from __future__ import annotations

import numpy as np
import torch

from expunge.core import identity
from expunge.core.facts import Facts
from expunge.core.influence import FirstOrder, Rows, SecondOrder
from expunge.methods.inputs import FitInputs
from expunge.methods.method import Settings, make
from expunge.methods.unlearned import UnlearnedModel
from expunge.system.errors import QualityError


def refuse_correction(name: str, method: str, facts: Facts, request: FitInputs, instead: list[str]) -> None:
    """Raise QualityError where `request` corrects labels and the entry `name` has a `method` that takes away alone."""
    if request.corrects and "corrections" not in facts.requests:
        raise QualityError(
            f"{name}: {method} takes rows away and cannot teach another label; take {', '.join(instead)}"
        )


def taught(name: str, request: FitInputs, settings: Settings) -> Settings:
    """The settings of a method that may learn from the original's answers; with corrections it learns from labels."""
    if not request.corrects:
        return settings
    if settings.get("targets", "labels") != "labels":
        raise QualityError(f"{name}: targets: original would teach the labels that were corrected; set targets: labels")
    return {**settings, "targets": "labels"}


def by_influence(
    name: str,
    request: FitInputs,
    settings: Settings,
    _: UnlearnedModel | None,
    method: type[FirstOrder] | type[SecondOrder],
) -> UnlearnedModel:
    """A step on the head for rows that get other labels, or that go."""
    fitted = make(name, method, settings).fit(request.head, *_changed(request))
    return UnlearnedModel(identity(request.store.dim), fitted.head_, {"gradient_norm": fitted.gradient_norm_})


def _changed(request: FitInputs) -> tuple[Rows, Rows, Rows | None]:
    """Rows that stay as they are, those of the request with the labels that they had, and with those that they get."""
    kept = np.setdiff1d(request.retain_rows, request.forget_rows)
    old, new = (torch.from_numpy(labels[request.forget_rows]) for labels in (request.old_labels, request.labels))
    z, y = torch.from_numpy(request.store.z(kept)), torch.from_numpy(request.labels[kept])
    return (z, y), (request.z_forget, old), (request.z_forget, new) if request.corrects else None
