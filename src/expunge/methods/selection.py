"""Choosing a method's settings without a retrained model and without a row that is reported.

A share of the retained and of the forgotten training rows is held out (`split.validation`). Every candidate is fitted
to the other rows and judged by the held-out ones, by what can be known without retraining: the probability left for
a forgotten class, and the accuracy that retained rows lose against the original. (Probability, not how many rows are
still named: a dozen rows tell candidates apart by it.) Among candidates whose sum of both is the same, to a
thousandth, the one that changes the original's predictions on retained rows least is taken. Held-out rows are in no
metric; the method is then fitted to all rows with the settings that were taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.methods.inputs import FitInputs
from expunge.methods.unlearned import UnlearnedModel
from expunge.system.errors import CollapseError, ConfigError

STEP = 1e-3  # shares that differ by less are equal


@dataclass(frozen=True)
class CandidateScore:
    """One candidate on held-out rows: mean probability left for the class that goes and accuracy lost, in [0, 1], and
    KL in nats; None where the fit was refused."""

    settings: dict[str, Any]
    forgotten_left: float | None
    retained_lost: float | None
    retained_kl: float | None
    refused: str | None = None

    @property
    def rank(self) -> tuple[int, float]:
        """The smaller the better."""
        assert self.forgotten_left is not None and self.retained_lost is not None and self.retained_kl is not None
        return round((self.forgotten_left + self.retained_lost) / STEP), self.retained_kl


def candidates(choose: Mapping[str, Sequence[Any]], where: str) -> list[dict[str, Any]]:
    """Every combination of the listed values. Raises ConfigError for what is no list of values."""
    for key, values in choose.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"params.yaml: {where}.choose.{key} is {values!r}; list the values to choose from")
    return [dict(zip(choose, values, strict=True)) for values in itertools.product(*choose.values())]


def judge(
    settings: dict[str, Any], logits: Callable[[], tuple[Tensor, Tensor]], original: tuple[Tensor, Tensor], y: Tensor
) -> CandidateScore:
    """`logits()` fits the candidate and gives its logits on held-out retained `(n, C)` and forgotten `(m, C)` rows;
    `original` are the original's on retained rows and the labels of forgotten rows `(m,)`; `y (n,)` retained labels."""
    before, forgotten_labels = original
    try:
        kept, gone = logits()
    except CollapseError as e:
        return CandidateScore(settings, None, None, None, str(e))
    accuracy = (kept.argmax(1) == y).double().mean()
    lost = (before.argmax(1) == y).double().mean() - accuracy
    p, q = (torch.log_softmax(x.double(), 1) for x in (before, kept))
    return CandidateScore(
        settings,
        forgotten_left=float(torch.softmax(gone.double(), 1).gather(1, forgotten_labels[:, None].long()).mean()),
        retained_lost=max(float(lost), 0.0),
        retained_kl=float((p.exp() * (p - q)).sum(1).mean()),
    )


def best(judged: Sequence[CandidateScore], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings to take, and the record for the report. Raises CollapseError when every candidate was refused."""
    able = [j for j in judged if j.refused is None]
    if not able:
        raise CollapseError(f"{where}: every candidate was refused; the first: {judged[0].refused}")
    taken = min(able, key=lambda j: j.rank)
    return taken.settings, {"taken": taken.settings, "candidates": [asdict(j) for j in judged]}


def choose_settings(
    name: str,
    request: FitInputs,
    choose: Mapping[str, Any],
    fitted: Callable[[FitInputs, Mapping[str, Any]], UnlearnedModel],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The best of the combinations in `choose`, and how all fared. `fitted(request, settings)` fits one of them.

    Where nothing can be chosen the first combination is taken, and the record says why: for single rows nothing tells
    without retraining how they should fare. Raises ConfigError for what is no choice.
    """
    where = f"fit.{name}"
    listed = candidates(choose, where)
    parts = request.retain_rows, request.forget_rows
    kept, gone = (np.intersect1d(rows, request.validation_rows) for rows in parts)
    if not request.forget_classes:
        return listed[0], {"taken": listed[0], "candidates": [], "why_first": "the request names rows, not classes"}
    if not len(kept) or not len(gone):
        return listed[0], {"taken": listed[0], "candidates": [], "why_first": "no row is held out (split.validation)"}
    retain_rows, forget_rows = (np.setdiff1d(rows, request.validation_rows) for rows in parts)
    part = replace(request, retain_rows=retain_rows, forget_rows=forget_rows, left_out=request.validation_rows)
    z_kept, z_gone = (torch.from_numpy(request.store.z(rows)) for rows in (kept, gone))
    y_kept, y_gone = (torch.from_numpy(request.labels[rows]) for rows in (kept, gone))

    def logits(settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        unlearned = fitted(part, settings)
        if unlearned.classifier is not None:
            raise ConfigError(f"params.yaml: {where}.choose is for maps and heads; this method changes the backbone")
        return unlearned.logits(z_kept), unlearned.logits(z_gone)

    original = request.head.logits(z_kept), y_gone
    return best([judge(c, partial(logits, c), original, y_kept) for c in listed], where)
