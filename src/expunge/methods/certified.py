"""Certified removal of a request: train a noisy head, remove the rows from it, and record the privacy budget spent."""

from __future__ import annotations

from typing import Any

import torch

from expunge.core import CertifiedRemoval
from expunge.methods.inputs import FitInputs
from expunge.methods.spending import Spending, record, spent_before
from expunge.methods.unlearned import UnlearnedModel


def remove_certified(method: CertifiedRemoval, request: FitInputs) -> UnlearnedModel:
    """Train the noisy head on every training row, then remove the request from it.

    The epsilon and delta that earlier runs of this workspace spent count against the budget. `info["certified"]` says
    whether the certificate holds (`holds`: True, or None with `why`) and how much was spent. Raises QualityError if the
    budget does not cover the request, and DataError if the backbone saw the rows.
    """
    rows, labels = request.train_rows, torch.from_numpy(request.labels)
    before = None if request.forgotten_dir is None else spent_before(request.forgotten_dir)
    method.fit(
        request.head,
        torch.from_numpy(request.store.z(rows)),
        labels[rows],
        saw_forget_data=request.classifier.card.features_saw,
        radius_of=request.z_retain,
        epsilon_before=0.0 if before is None else before.epsilon,
    )
    method.remove(request.z_retain, labels[request.retain_rows], request.z_forget, labels[request.forget_rows])
    if request.forgotten_dir is not None and before is not None:
        own = method.epsilon_spent_ - before.epsilon
        record(request.forgotten_dir, before, own, method.delta_, len(request.forget_rows))
    return UnlearnedModel(method.map_, method.head_, {"certified": _claim(method, before, len(rows))})


def _claim(method: CertifiedRemoval, before: Spending | None, n: int) -> dict[str, Any]:
    delta = method.delta_ + (0.0 if before is None else before.delta)
    why = method.why_not_
    if before is None:
        why = "earlier spending is unknown, because there is no folder of forgotten rows"
    elif not before.known:
        why = "earlier spending is unknown, because rows were forgotten here before releases were recorded"
    elif why is None and delta >= 1 / n:
        why = f"the sum of delta over all releases must be below 1/n = {1 / n:.3g}, but it is {delta:.3g}"
    return {
        "holds": True if why is None else None,
        "why": why or "noise, budget, radius and delta meet the conditions of the certificate",
        "epsilon": method.epsilon,
        "epsilon_spent": method.epsilon_spent_,
        "delta": delta,
        "releases": 1 if before is None else 1 + len(before.releases),
        "radius": "longest retained row" if method.radius is None else "given",
    }
