"""Choice of a method's settings without a retrained model and without any row that enters a metric.

A share of the retained and of the forgotten training rows is held out (`split.validation`). Every candidate is fitted
to the other rows and judged on the held-out ones by two values that need no retraining: the probability left for a
forgotten class, and the accuracy that retained rows lose against the original. Probability is used instead of the
share of rows still classified as forgotten, because it distinguishes candidates even on a dozen rows. Among candidates
with the same sum of both, to a thousandth, the one that changes the original's predictions on retained rows least is
chosen. A candidate that loses more than the guard allows (`max_drop`) is taken only if all do. Held-out rows enter no
metric. The method is then fitted to all rows with the chosen settings.
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
from expunge.methods.utility import logits_of
from expunge.system.errors import REFUSALS, CollapseError, ConfigError

STEP = 1e-3  # resolution at which sums of shares are compared


@dataclass(frozen=True)
class CandidateScore:
    """Scores of one candidate on held-out rows; None if the fit was refused.

    `forgotten_left`: mean probability left for the forgotten class, in [0, 1]. `retained_lost`: accuracy lost on
    retained rows, in [0, 1]. `retained_kl`: KL(original || candidate) on retained rows, in nats.
    """

    settings: dict[str, Any]
    forgotten_left: float | None
    retained_lost: float | None
    retained_kl: float | None
    refused: str | None = None

    @property
    def rank(self) -> tuple[int, float]:
        """Sort key of candidates; smaller is better."""
        assert self.forgotten_left is not None and self.retained_lost is not None and self.retained_kl is not None
        return round((self.forgotten_left + self.retained_lost) / STEP), self.retained_kl


def candidates(choose: Mapping[str, Sequence[Any]], where: str) -> list[dict[str, Any]]:
    """Every combination of the listed values. Raises ConfigError for a setting without a list of values."""
    for key, values in choose.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"params.yaml: {where}.choose.{key} is {values!r}; list the values to choose from")
    return [dict(zip(choose, values, strict=True)) for values in itertools.product(*choose.values())]


def judge(
    settings: dict[str, Any], logits: Callable[[], tuple[Tensor, Tensor]], original: tuple[Tensor, Tensor], y: Tensor
) -> CandidateScore:
    """Fit and score one candidate on held-out rows.

    `logits()` fits the candidate and returns its logits on retained `(n, C)` and forgotten `(m, C)` rows. `original`:
    the original's logits on retained rows and the labels `(m,)` of forgotten rows. `y (n,)`: labels of retained rows.
    """
    before, forgotten_labels = original
    try:
        retain, forget = logits()
    except REFUSALS as e:
        return CandidateScore(settings, None, None, None, str(e))
    if not (retain.isfinite().all() and forget.isfinite().all()):
        return CandidateScore(settings, None, None, None, "its logits are not finite")
    accuracy = (retain.argmax(1) == y).double().mean()
    lost = (before.argmax(1) == y).double().mean() - accuracy
    p, q = (torch.log_softmax(x.double(), 1) for x in (before, retain))
    return CandidateScore(
        settings,
        forgotten_left=float(torch.softmax(forget.double(), 1).gather(1, forgotten_labels[:, None].long()).mean()),
        retained_lost=max(float(lost), 0.0),
        retained_kl=float((p.exp() * (p - q)).sum(1).mean()),
    )


def best(judged: Sequence[CandidateScore], where: str, max_drop: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """The best candidate's settings, and the record for the report.

    Raises CollapseError if every candidate was refused.
    """
    fitted = [j for j in judged if j.refused is None]
    if not fitted:
        raise CollapseError(f"{where}: every candidate was refused, the first because: {judged[0].refused}")
    able = [j for j in fitted if j.retained_lost is not None and j.retained_lost <= max_drop] or fitted
    taken = min(able, key=lambda j: j.rank)
    return taken.settings, {"taken": taken.settings, "candidates": [asdict(j) for j in judged]}


def choose_settings(
    name: str,
    request: FitInputs,
    choose: Mapping[str, Any],
    fitted: Callable[[FitInputs, Mapping[str, Any]], UnlearnedModel],
    max_drop: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The best of the combinations in `choose`, and the scores of all. `fitted(request, settings)` fits one of them.

    `max_drop`: the share of retained rows that the result may lose.

    If the request names rows instead of classes, or no row is held out, the first combination is taken and the record
    says why: without retraining there is no target for single rows. Raises ConfigError for an invalid `choose`.
    """
    where = f"fit.{name}"
    listed = candidates(choose, where)
    parts = request.retain_rows, request.forget_rows
    retain, forget = (np.intersect1d(rows, request.validation_rows) for rows in parts)
    if not request.forget_classes:
        return listed[0], {"taken": listed[0], "candidates": [], "why_first": "the request names rows, not classes"}
    if not len(retain) or not len(forget):
        return listed[0], {"taken": listed[0], "candidates": [], "why_first": "no row is held out (split.validation)"}
    retain_rows, forget_rows = (np.setdiff1d(rows, request.validation_rows) for rows in parts)
    part = replace(request, retain_rows=retain_rows, forget_rows=forget_rows, left_out=request.validation_rows)
    y_retain, y_forget = (torch.from_numpy(request.labels[rows]) for rows in (retain, forget))

    def logits(settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        unlearned = fitted(part, settings)
        return logits_of(unlearned, request, retain), logits_of(unlearned, request, forget)

    original = request.head.logits(torch.from_numpy(request.store.z(retain))), y_forget
    return best([judge(c, partial(logits, c), original, y_retain) for c in listed], where, max_drop)
