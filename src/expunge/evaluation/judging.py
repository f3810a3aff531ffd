"""Judge one model against the original and the retrained models: the gates and the utility behind its claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.claims import judge_gates, utility_of
from expunge.evaluation.controls import control_of, negative_controls
from expunge.evaluation.excess import GateRows
from expunge.evaluation.gates import (
    ModelRows,
    Values,
    build_gates,
    half_of,
    model_rows,
    on_half,
    spread_over_fits,
    values_of,
)
from expunge.evaluation.rows import Rows

# Logits (n, C) of all rows, and per-row values of what was measured, by path; None where it does not exist.
Model = tuple[NDArray[Any], Mapping[str, NDArray[Any] | None]]
UTILITY_PARTS = ("retain", "test_retain")


def judge(
    candidate: Model,
    original: Model,
    retrained: Sequence[Model],
    rows: Rows,
    half: int | None = None,
    other_fits: Sequence[Model] = (),
) -> dict[str, Any]:
    """Judge the candidate: its `gates`, `choice`, `utility` and `control`, as a JSON block.

    `gates`: from `judge_gates`, on every second row where `half` is 0 or 1. `choice`: the largest absolute share over
    the gates on the other rows, by which a method is chosen. `control`: the name of the negative control whose outputs
    the candidate gives, or None. `other_fits`: the candidate's method under other fit seeds. If their values spread
    wider than those of retrained models, the intervals use that spread.

    Without retrained models there are no gates, and utility is measured against the original, as `against` says.
    """
    references = [model_rows(logits, rows, values) for logits, values in retrained]
    gates: list[GateRows] = []
    values: Values = {}
    fits: list[Values] = []
    if references:
        base = model_rows(original[0], rows, original[1])
        gates = build_gates(base, references, rows)
        values, *fits = (
            values_of(model_rows(logits, rows, measured), references, base, rows)
            for logits, measured in (candidate, *other_fits)
        )

    def judged(half: int | None) -> list[dict[str, Any]]:
        mine = half_of(values, half)
        return judge_gates(spread_over_fits(on_half(gates, half), [mine, *(half_of(f, half) for f in fits)]), mine)

    shares = [abs(b["share"]) for b in judged(None if half is None else 1 - half) if b["share"] is not None]
    compared = [_accuracies(model) for model in (retrained or [original])]
    return {
        "gates": judged(half),
        "choice": max(shares, default=None),
        "utility": {
            **utility_of(_accuracies(candidate), compared),
            "against": "retrained" if retrained else "original",
        },
        "control": _control(candidate[0], original[0], references, rows),
    }


def judge_controls(
    original: Model,
    retrained: Sequence[Model],
    rows: Rows,
    half: int | None = None,
    measured_of: Callable[[NDArray[Any]], Mapping[str, NDArray[Any] | None]] = lambda _: {},
) -> dict[str, list[dict[str, Any]]]:
    """Judge every negative control at every gate: blocks as `judge_gates` by the control's name.

    A control has the original's features, so the original's measurements of features apply to it. `measured_of`
    computes from a control's logits the values that depend on logits and features.
    """
    references = [model_rows(logits, rows, values) for logits, values in retrained]
    base = model_rows(original[0], rows, original[1])
    gates = on_half(build_gates(base, references, rows), half)
    found = {}
    for name, logits in _controls(original[0], references, rows).items():
        mine = model_rows(logits, rows, {**original[1], **measured_of(logits)})
        found[name] = judge_gates(gates, half_of(values_of(mine, references, base, rows), half))
    return found


def _accuracies(model: Model) -> dict[str, NDArray[Any]]:
    found = {part: model[1].get(f"accuracy.{part}") for part in UTILITY_PARTS}
    return {part: np.asarray(values, np.float64) for part, values in found.items() if values is not None}


def _controls(logits: NDArray[Any], references: Sequence[ModelRows], rows: Rows) -> dict[str, NDArray[Any]]:
    classes = rows.forgotten_classes if rows.whole_classes else np.array([], dtype=np.int64)
    accuracy = None
    if references and len(rows.forget):
        accuracy = float(np.mean([r.alone["accuracy.forget"].mean() for r in references]))
    return dict(negative_controls(logits, rows.labels, rows.forget, classes, accuracy))


def _control(
    candidate: NDArray[Any], original: NDArray[Any], references: Sequence[ModelRows], rows: Rows
) -> str | None:
    classes = rows.forgotten_classes if rows.whole_classes else np.array([], dtype=np.int64)
    return control_of(original, candidate, classes, _controls(original, references, rows))
