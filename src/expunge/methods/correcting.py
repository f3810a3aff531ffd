"""Requests that correct labels: a method must be able to teach new labels and must not learn the old ones."""

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
    """Raise QualityError if `request` corrects labels and the `method` of the entry `name` can only remove rows."""
    if request.corrects and "corrections" not in facts.requests:
        raise QualityError(f"{name}: {method} removes rows and cannot correct labels; use {', '.join(instead)}")


def taught(name: str, request: FitInputs, settings: Settings) -> Settings:
    """Settings of a method that can learn from the original's outputs; if the request corrects labels, from labels.

    Raises QualityError if the request corrects labels and the settings ask for other targets.
    """
    if not request.corrects:
        return settings
    if settings.get("targets", "labels") != "labels":
        raise QualityError(f"{name}: targets: original would teach the old labels again; set targets: labels")
    return {**settings, "targets": "labels"}


def by_influence(
    name: str,
    request: FitInputs,
    settings: Settings,
    _: UnlearnedModel | None,
    method: type[FirstOrder] | type[SecondOrder],
) -> UnlearnedModel:
    """Take an influence-function step on the head for rows that are removed or get new labels."""
    fitted = make(name, method, settings).fit(request.head, *_changed(request))
    return UnlearnedModel(identity(request.store.dim), fitted.head_, {"gradient_norm": fitted.gradient_norm_})


def _changed(request: FitInputs) -> tuple[Rows, Rows, Rows | None]:
    """The unchanged rows, the rows of the request with their old labels, and these with their new labels.

    The last is None unless the request corrects labels.
    """
    unchanged = np.setdiff1d(request.retain_rows, request.forget_rows)
    old, new = (torch.from_numpy(labels[request.forget_rows]) for labels in (request.old_labels, request.labels))
    z, y = torch.from_numpy(request.store.z(unchanged)), torch.from_numpy(request.labels[unchanged])
    return (z, y), (request.z_forget, old), (request.z_forget, new) if request.corrects else None
