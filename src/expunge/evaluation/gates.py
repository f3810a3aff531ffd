"""Per-row values of every gate, which the verdict compares between a candidate, the original and retrained models.

A gate is the mean of these values over rows, so its variation can be estimated over models and over rows. If a value
compares two models, that of a retrained model is the mean over the *other* retrained models, and that of a candidate is
the mean over all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation import divergence as div
from expunge.evaluation import membership as mia
from expunge.evaluation.alignment import alignment_rows
from expunge.evaluation.cmia import cmia_rows
from expunge.evaluation.criteria import BACKBONE, FEATURES, OUTPUTS
from expunge.evaluation.divergence import Floats
from expunge.evaluation.excess import GateRows
from expunge.evaluation.rows import Rows

MARGIN_CLIP = 12.0  # nats; without a limit, single rows with extreme margins would dominate the mean
MIA_ROWS = 4000  # rows on each side of the membership attack's learning set
ALIGNMENT_ROWS = 1500  # retained rows from which the leading directions are computed
CMIA_ROWS = 600  # forgotten rows that the class-wise attack is fitted to and scored on
PAIRED = ("divergence.forget.kl", "divergence.forget.agreement")
HIDDEN = ("divergence.forget.kl_others", "divergence.forget.agreement_others")
CMIA = "membership.cmia"
GEOMETRY = "membership.class_geometry"
RELEARN = "relearn.area"
CANARY = "membership.canary_auc"
DIRECTION = "membership.margin_excess"
STAGE = "representation.stages.probe_"  # followed by the stage's number, 1 for the stage nearest the input
MAX_STAGES = 4
ALIGNMENT = ("representation.alignment_z_prime", "representation.alignment_z")
# Gates that can refute a claim but not show it. Alignment: in the study of docs/verdict.md a map of the original's
# features passes it. Canaries: no study has tested them.
REFUTE_ONLY = frozenset((*ALIGNMENT, CANARY))
CLAIM_OF = {
    "accuracy.forget": OUTPUTS,
    **dict.fromkeys((*PAIRED, *HIDDEN, CMIA, GEOMETRY, DIRECTION), OUTPUTS),
    "membership.loss_auc": OUTPUTS,
    "membership.mia_lr_member": OUTPUTS,
    CANARY: OUTPUTS,
    "representation.probe_z_prime": FEATURES,
    "representation.knn_z_prime": FEATURES,
    RELEARN: FEATURES,
    ALIGNMENT[0]: FEATURES,
    "representation.probe_z": BACKBONE,
    "representation.knn_z": BACKBONE,
    ALIGNMENT[1]: BACKBONE,
    **{f"{STAGE}{i}": BACKBONE for i in range(1, MAX_STAGES + 1)},
}


def stage_path(number: int) -> str:
    """Path of the gate of the probe at a stage inside the backbone; stages count from 1, the one nearest the input."""
    return f"{STAGE}{number}"


Values = dict[str, Floats]


@dataclass(frozen=True)
class ModelRows:
    """One model's values on the planned rows.

    `alone`: per-row values `(n_gate,)` of the gates that need no other model. `logits (n_forget, C)`: those of
    forgotten rows. `margins (n_forget,)`: their true-class margins minus the mean margin on unseen rows.
    """

    alone: Values
    logits: Floats
    margins: Floats


def true_class_margin(logits: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """log p_y - log(1 - p_y) per row `(n,)`, nats, clipped to [-MARGIN_CLIP, MARGIN_CLIP]."""
    log_p = div.log_softmax(logits)
    rows, y = np.arange(len(log_p)), np.asarray(labels)
    own = log_p[rows, y].copy()
    log_p[rows, y] = -np.inf
    top = log_p.max(axis=1)
    rest = top + np.log(np.exp(log_p - top[:, None]).sum(axis=1))
    return np.asarray(np.clip(own - rest, -MARGIN_CLIP, MARGIN_CLIP))


def hide(logits: NDArray[Any], classes: NDArray[Any]) -> Floats:
    """The logits without the columns of `classes`, for comparing models on the other classes alone."""
    keep = np.setdiff1d(np.arange(np.shape(logits)[1]), np.asarray(classes))
    return np.asarray(logits, np.float64)[:, keep]


def aligned(z: NDArray[Any], rows: Rows) -> Floats | None:
    """Per forgotten row `(n,)` the contribution to the alignment of features `z (N, d)`, from `alignment_rows`.

    None where retained or forgotten rows are missing, or their features are all zero.
    """
    retain, forget = rows.thin(rows.parts["retain"], ALIGNMENT_ROWS, 13), rows.forget
    if not len(retain) or not len(forget) or not np.any(z[retain]) or not np.any(z[forget]):
        return None
    return alignment_rows(z[retain], z[forget])


def model_rows(logits: NDArray[Any], rows: Rows, measured: Mapping[str, NDArray[Any] | None]) -> ModelRows:
    """Compute the values of one model that the gates need.

    `logits (n, C)`: those of all rows. `measured`: other per-row values by path, such as those of probes; None where
    one does not exist.
    """
    logits, y = np.asarray(logits), rows.labels
    forget, unseen = rows.forget, rows.unseen
    correct = (logits[forget].argmax(axis=1) == y[forget]).astype(np.float64)
    alone: Values = {"accuracy.forget": correct}
    if len(forget) and len(unseen):
        losses = mia.loss(logits[forget], y[forget]), mia.loss(logits[unseen], y[unseen])
        alone["membership.loss_auc"] = mia.placements(-losses[0], -losses[1])
    member = mia.mia_lr_rows(
        logits[rows.thin(rows.parts["retain"], MIA_ROWS, 11)],
        logits[rows.thin(rows.test, MIA_ROWS, 12)],
        logits[forget],
    )
    if member is not None:
        alone["membership.mia_lr_member"] = member
    alone |= {path: np.asarray(v, np.float64) for path, v in measured.items() if v is not None and path in CLAIM_OF}
    margins = true_class_margin(logits[forget], y[forget]) if len(forget) else np.zeros(0)
    centre = float(true_class_margin(logits[unseen], y[unseen]).mean()) if len(unseen) else 0.0
    return ModelRows(alone, np.asarray(logits[forget], np.float64), margins - centre)


def values_of(
    model: ModelRows, others: Sequence[ModelRows], original: ModelRows, rows: Rows, attack: bool = True
) -> Values:
    """Per-row values of one model for every gate, including those that compare it with `others`, the retrained models.

    `attack`: whether to run the class-wise attack, which takes longer than all other gates together.
    """
    found = dict(model.alone)
    if not others or not len(rows.forget):
        return found
    found |= _against(PAIRED, model.logits, [o.logits for o in others])
    if rows.whole_classes:
        classes = rows.forgotten_classes
        if model.logits.shape[1] - len(classes) > 1:
            found |= _against(HIDDEN, hide(model.logits, classes), [hide(o.logits, classes) for o in others])
            if attack:
                found |= _attacked(model, others, rows)
    elif len(others) > 1:
        found[DIRECTION] = direction_rows(model.margins, original.margins, np.stack([o.margins for o in others]))
    return found


def _attacked(model: ModelRows, others: Sequence[ModelRows], rows: Rows) -> Values:
    few, classes = rows.thin(np.arange(len(rows.forget)), CMIA_ROWS, 14), rows.forgotten_classes.tolist()
    each = [cmia_rows(model.logits[few], o.logits[few], classes) for o in others]
    return {} if any(values is None for values in each) else {CMIA: np.mean(np.array(each, np.float64), axis=0)}


def _against(paths: tuple[str, str], logits: Floats, others: Sequence[Floats]) -> Values:
    kl, agreement = paths
    return {
        kl: np.mean([div.kl_rows(o, logits) for o in others], axis=0),
        agreement: np.mean([div.agreement_rows(o, logits) for o in others], axis=0, dtype=np.float64),
    }


def direction_rows(candidate: NDArray[Any], original: NDArray[Any], retrained: NDArray[Any]) -> Floats:
    """Mean over ordered pairs a != b of retrained models of (u - r_a)(o - r_b), per row `(n,)`.

    The value is the candidate's deviation u from retrained models times the original's deviation o, so rows that the
    original memorised weigh most. No retrained model occurs in both factors of a product, so the value is 0 on average
    for a further retrained model (derived). `candidate (n,)`, `original (n,)`, `retrained (R, n)`. Raises ValueError
    for R < 2.
    """
    r = np.asarray(retrained, np.float64)
    m = len(r)
    if m < 2:
        raise ValueError("the direction of memorisation needs at least two retrained models")
    u, o = np.asarray(candidate, np.float64) - r, np.asarray(original, np.float64) - r
    return np.asarray((u.sum(axis=0) * o.sum(axis=0) - (u * o).sum(axis=0)) / (m * (m - 1)))


def build_gates(original: ModelRows, retrained: Sequence[ModelRows], rows: Rows) -> list[GateRows]:
    """Build every gate for which the original and all retrained models have values, in the order of CLAIM_OF."""
    if not retrained:
        return []
    everyone = values_of(original, retrained, original, rows)
    each = [values_of(r, [o for o in retrained if o is not r], original, rows) for r in retrained]
    count = len(retrained)
    gates = []
    for path, claim in CLAIM_OF.items():
        if path not in everyone or any(path not in values for values in each) or not len(everyone[path]):
            continue
        widen: float | None = 1.0
        if path in (*PAIRED, *HIDDEN, CMIA):  # values that compare retrained models with each other, see GateRows
            widen = (count - 1) / (count - 2) if count > 2 else None
        gates.append(
            GateRows(
                path, claim, everyone[path], np.stack([v[path] for v in each]), widen, shows=path not in REFUTE_ONLY
            )
        )
    return gates


def on_half(gates: Sequence[GateRows], half: int | None) -> list[GateRows]:
    """The gates on every second row, starting at row `half` (0 or 1); None keeps all rows.

    The choice among methods uses one half of the rows and the verdict the other.
    """
    if half is None:
        return list(gates)
    return [replace(g, original=g.original[half::2], retrained=g.retrained[:, half::2]) for g in gates]


def spread_over_fits(gates: Sequence[GateRows], fits: Sequence[Mapping[str, NDArray[Any]]]) -> list[GateRows]:
    """The gates with `fit_spread` set to the standard deviation (ddof 1) of a method's values over its fits.

    The fits' values are over the same rows. A gate is unchanged if fewer than two fits have values for it.
    """
    found = []
    for gate in gates:
        means = [float(np.mean(fit[gate.path])) for fit in fits if gate.path in fit and len(fit[gate.path])]
        # For equal means the spread is exactly 0; np.std would return a rounding error instead.
        differ = len(means) > 1 and np.ptp(means) > 0
        found.append(replace(gate, fit_spread=float(np.std(means, ddof=1))) if differ else gate)
    return found


def half_of(values: Mapping[str, NDArray[Any]], half: int | None) -> Values:
    """A candidate's values on the same rows as `on_half`."""
    return {path: np.asarray(v)[half::2] if half is not None else np.asarray(v) for path, v in values.items()}
