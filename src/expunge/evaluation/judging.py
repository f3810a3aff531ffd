"""One model against the original and the retrained models: what its claims are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.claims import judge_gates, utility_of
from expunge.evaluation.controls import control_of, negative_controls
from expunge.evaluation.excess import GateRows
from expunge.evaluation.gates import ModelRows, Values, build_gates, half_of, model_rows, on_half, values_of
from expunge.evaluation.rows import Rows

# Logits (n, C) of all rows, and per-row values of what was measured, by path; None where it does not exist.
Model = tuple[NDArray[Any], Mapping[str, NDArray[Any] | None]]
UTILITY_PARTS = ("retain", "test_retain")


def judge(
    candidate: Model, original: Model, retrained: Sequence[Model], rows: Rows, half: int | None = None
) -> dict[str, Any]:
    """`gates` as `judge_gates` gives them, on every second row where `half` is 0 or 1; `choice`, the largest absolute
    share over the gates on the other rows, to choose a method by; `utility`; and `control`, the name of the control
    that the candidate is by what it says, or None.

    Without retrained models there are no gates, and utility is against the original, with `against` saying so.
    """
    references = [model_rows(logits, rows, values) for logits, values in retrained]
    gates: list[GateRows] = []
    values: Values = {}
    if references:
        base = model_rows(original[0], rows, original[1])
        gates = build_gates(base, references, rows)
        values = values_of(model_rows(candidate[0], rows, candidate[1]), references, base, rows)
    other = None if half is None else 1 - half
    shares = [
        abs(block["share"])
        for block in judge_gates(on_half(gates, other), half_of(values, other))
        if block["share"] is not None
    ]
    compared = [_accuracies(model) for model in (retrained or [original])]
    return {
        "gates": judge_gates(on_half(gates, half), half_of(values, half)),
        "choice": max(shares, default=None),
        "utility": {
            **utility_of(_accuracies(candidate), compared),
            "against": "retrained" if retrained else "original",
        },
        "control": _control(candidate[0], original[0], references, rows),
    }


def judge_controls(
    original: Model, retrained: Sequence[Model], rows: Rows, half: int | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The gates of every negative control; their features are the original's."""
    references = [model_rows(logits, rows, values) for logits, values in retrained]
    base = model_rows(original[0], rows, original[1])
    gates = on_half(build_gates(base, references, rows), half)
    found = {}
    for name, logits in _controls(original[0], references, rows).items():
        mine = model_rows(logits, rows, original[1])
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
