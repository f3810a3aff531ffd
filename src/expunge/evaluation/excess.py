"""The share of the original's excess over retrained models that a model still has, with an interval over models and
rows.

A gate has one value per row and model, `x`. With `r` the mean of the R retrained models the excess of the original is
`E = mean(x_original) - mean(r)`, and a candidate's share is `(mean(x_candidate) - mean(r)) / E`: 1 for the original, 0
on average for a further retrained model, below 0 for one that overshoots.

Assumptions, which the study in docs/verdict.md tests: values of retrained models are normal with one spread `s`, and
those of the original's training and of the candidate's fit spread no wider (unless `fit_spread` says how wide). Then
`candidate - mean(r)` has standard error `s sqrt(1 + 1/R)`, and `s` R - 1 degrees of freedom: Student's interval is
exact for any R >= 2. It is joined with a t interval over rows, paired, as the root of the sum of squares (derived).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.criteria import ALPHA, BETA, LEFT, MIN_REFERENCES, MIN_ROWS, OVERSHOT
from expunge.evaluation.divergence import Floats


@dataclass(frozen=True)
class GateRows:
    """What one gate compares: values over the same rows, `original (n,)`, `retrained (R, n)`, and its claim.

    `widen` corrects the spread of values in which a retrained model was compared with the others: a deviation of a
    model from the mean shows in them (R - 2)/(R - 1) times when the divergence is symmetric, so they are widened by
    the inverse (derived); None where R is too small to know. `fit_spread`: of values over fit seeds, where measured.
    `shows`: whether passing it may show a claim; where not it never has power, and can only refute.
    """

    path: str
    claim: str
    original: Floats
    retrained: Floats
    widen: float | None = 1.0
    fit_spread: float = 0.0
    shows: bool = True

    def __post_init__(self) -> None:
        n = len(self.original)
        if self.retrained.ndim != 2 or (len(self.retrained) and self.retrained.shape[1] != n):
            raise ValueError(f"gate {self.path}: retrained must be (models, {n}), got {self.retrained.shape}")
        if not np.isfinite(self.original).all() or not np.isfinite(self.retrained).all():
            raise ValueError(f"gate {self.path}: values must be finite")

    @property
    def rows(self) -> int:
        return len(self.original)

    @property
    def references(self) -> int:
        return len(self.retrained)

    @property
    def usable(self) -> bool:
        """Whether the spread of models and of rows can be known at all."""
        return self.references >= MIN_REFERENCES and self.rows >= MIN_ROWS and self.widen is not None


@lru_cache(maxsize=4096)
def t_quantile(alpha: float, df: int) -> float:
    """Upper alpha quantile of Student's t."""
    from scipy.stats import t

    return float(t.isf(alpha, df))


def model_spread(gate: GateRows) -> tuple[float, float]:
    """Standard deviation between retrained models, and the part of it that rows give if they vary independently.

    The first is the larger of what R models show and of the second: few models are equal by chance more often than
    thousands of rows are.
    """
    if not gate.usable:
        raise ValueError(f"gate {gate.path}: too few models or rows to know their spread")
    assert gate.widen is not None
    means = gate.retrained.mean(axis=1)
    between = gate.widen * float(means.std(ddof=1))
    by_rows = gate.widen * float(np.sqrt(gate.retrained.var(axis=0, ddof=1).mean() / gate.rows))
    return max(between, by_rows, gate.fit_spread), by_rows


def row_error(differences: NDArray[Any]) -> float:
    """Standard error of a mean over rows `(n,)`."""
    return float(np.std(differences, ddof=1) / np.sqrt(len(differences)))


def half_width(gate: GateRows, differences: NDArray[Any], alpha: float) -> float:
    """Half the width of the interval of `mean(differences)`, each end missed with chance alpha."""
    spread, _ = model_spread(gate)
    over_models = t_quantile(alpha, gate.references - 1) * spread * np.sqrt(1 + 1 / gate.references)
    over_rows = t_quantile(alpha, gate.rows - 1) * row_error(differences)
    return float(np.hypot(over_models, over_rows))


@dataclass(frozen=True)
class Power:
    """What a gate can tell on these rows, before any candidate is looked at.

    `excess` of the original with `interval`; `tells`: the interval excludes 0 and its nearer end exceeds the spread
    between the retrained models (their range), so that a candidate can be refuted; `power`: besides, a further
    retrained model would lie inside the margins with chance 1 - BETA, so that a claim can be shown. `reach` is the
    share of the excess that such a model needs: power is reach <= margin.
    """

    excess: float | None
    interval: tuple[float, float] | None
    tells: bool
    power: bool
    reach: float | None
    reason: str


def power_of(gate: GateRows) -> Power:
    """The power of a gate, from the original and the retrained models alone."""
    if not gate.references or not gate.rows:
        return Power(None, None, False, False, None, "no retrained model or no rows")
    excess_rows = gate.original - gate.retrained.mean(axis=0)
    excess = float(excess_rows.mean())
    if not gate.usable:
        lacks = f"{gate.references} retrained models and {gate.rows} rows"
        return Power(excess, None, False, False, None, f"{lacks}: {MIN_REFERENCES} and {MIN_ROWS} are needed")
    spread, _ = model_spread(gate)
    half = half_width(gate, excess_rows, ALPHA)
    means = gate.retrained.mean(axis=1)
    assert gate.widen is not None
    between = max(spread, gate.widen * float(np.ptp(means)))
    interval = (excess - half, excess + half)
    if abs(excess) - half <= between:
        return Power(excess, interval, False, False, None, "the original is no further away than retrained models are")
    needed = _half_of_retrained(gate) + _deviation(gate, spread)
    reach = needed / abs(excess)
    if reach > min(LEFT, OVERSHOT):
        return Power(excess, interval, True, False, reach, "a further retrained model would often miss the margin")
    if not gate.shows:
        return Power(excess, interval, True, False, reach, "it can refute a claim and show none")
    return Power(excess, interval, True, True, reach, "")


def _half_of_retrained(gate: GateRows) -> float:
    """The half width that a further retrained model would be judged with: each of the R in turn stands in for it."""
    others = gate.references - 1
    widths = []
    for k in range(gate.references):
        rest = np.delete(gate.retrained, k, axis=0).mean(axis=0)
        # Its difference to R - 1 models has the variance (1 + 1/(R - 1)), to R models (1 + 1/R).
        scale = np.sqrt((1 + 1 / gate.references) / (1 + 1 / others))
        widths.append(half_width(gate, (gate.retrained[k] - rest) * scale, ALPHA))
    return float(np.mean(widths))


def _deviation(gate: GateRows, spread: float) -> float:
    """How far a further retrained model lies from the mean of the others, exceeded on either side with chance BETA."""
    return t_quantile(BETA / 2, gate.references - 1) * spread * float(np.sqrt(1 + 1 / gate.references))


@dataclass(frozen=True)
class Share:
    """A candidate's value, its share of the excess with two intervals: that of a pass and the wider of a refutation."""

    value: float
    target: float
    share: float | None
    interval: tuple[float, float] | None
    wide: tuple[float, float] | None

    @property
    def passed(self) -> bool:
        """The interval lies inside the margins."""
        return self.interval is not None and self.interval[0] >= -OVERSHOT and self.interval[1] <= LEFT

    @property
    def refuted(self) -> bool:
        """The wide interval lies outside the margins."""
        return self.wide is not None and (self.wide[0] > LEFT or self.wide[1] < -OVERSHOT)


def share_of(gate: GateRows, candidate: NDArray[Any], alpha_refute: float) -> Share:
    """The candidate's `(n,)` share of the excess. By the delta method the error of the ratio is that of
    `candidate - r - share (original - r)`, divided by the excess; valid where `power_of` says that the gate tells."""
    x = np.asarray(candidate, np.float64)
    if x.shape != gate.original.shape or not np.isfinite(x).all():
        raise ValueError(f"gate {gate.path}: the candidate needs {gate.rows} finite values, got {x.shape}")
    reference = gate.retrained.mean(axis=0)
    value, target = float(x.mean()), float(reference.mean())
    excess = float(gate.original.mean()) - target
    if not gate.usable or excess == 0.0:
        return Share(value, target, None, None, None)
    share = (value - target) / excess
    rest = (x - reference) - share * (gate.original - reference)
    ends = []
    for alpha in (ALPHA, alpha_refute):
        half = half_width(gate, rest, alpha) / abs(excess)
        ends.append((share - half, share + half))
    return Share(value, target, share, ends[0], ends[1])


def rows_needed(gate: GateRows, most: int = 10_000_000) -> int | None:
    """How many rows like these would give the gate power; None where more rows cannot, only more retrained models.

    The excess and the part of the spread that all rows share stay; what rows vary by independently falls with 1/n.
    Derived from `power_of`, with normal deviates for the rows. Raises ValueError where the gate is not usable.
    """
    n = gate.rows
    spread, by_rows = model_spread(gate)
    common = max(spread**2 - by_rows**2, 0.0)
    excess_rows = gate.original - gate.retrained.mean(axis=0)
    excess, row_sd = abs(float(excess_rows.mean())), float(gate.retrained.std(axis=0, ddof=1).mean())
    df = gate.references - 1
    factor = np.sqrt(1 + 1 / gate.references)

    def reached(count: int) -> bool:
        s = np.sqrt(common + by_rows**2 * n / count)
        half = np.hypot(t_quantile(ALPHA, df) * s * factor, 1.645 * row_sd * factor / np.sqrt(count))
        return bool(half + t_quantile(BETA / 2, df) * s * factor <= min(LEFT, OVERSHOT) * excess)

    if not excess or not reached(most):
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle + 1, high)
    return max(low, MIN_ROWS)
