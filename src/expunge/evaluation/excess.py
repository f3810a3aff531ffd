"""The share of the original's excess over retrained models that a model still has, and its confidence interval.

A gate has one value `x` per row and model. Let `r` be the mean of the R retrained models. The excess of the original is
`E = mean(x_original) - mean(r)`, and a candidate's share is `(mean(x_candidate) - mean(r)) / E`. It is 1 for the
original, 0 on average for a further retrained model, and below 0 for a model that overshoots.

The assumptions, which the study in docs/verdict.md tests: values of retrained models are normal with one standard
deviation `s`, and those of the original's training and of the candidate's fit spread no wider (unless `fit_spread` says
how wide). Then `candidate - mean(r)` has standard error `s sqrt(1 + 1/R)`, and `s` has R - 1 degrees of freedom, so
Student's interval is exact for any R >= 2. It is combined with a paired t interval over rows as the root of the sum of
squares (derived).
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
    """The values that one gate compares, over the same rows: `original (n,)` and `retrained (R, n)`, and its claim.

    `widen` corrects the spread of values in which a retrained model was compared with the others. With a symmetric
    divergence a model's deviation from the mean appears in them (R - 2)/(R - 1) times, so the spread is multiplied by
    the inverse (derived); None where R is too small for that. `fit_spread`: standard deviation of the values over fit
    seeds, 0 where it was not measured. `shows`: whether passing the gate may show a claim; a gate that may not never
    has power and can only refute. Raises ValueError for values that are not finite or shapes that do not fit.
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
        """The number n of rows."""
        return len(self.original)

    @property
    def references(self) -> int:
        """The number R of retrained models."""
        return len(self.retrained)

    @property
    def usable(self) -> bool:
        """Whether there are enough models and rows to estimate their spread."""
        return self.references >= MIN_REFERENCES and self.rows >= MIN_ROWS and self.widen is not None


@lru_cache(maxsize=4096)
def t_quantile(alpha: float, df: int) -> float:
    """Upper alpha quantile of Student's t with `df` degrees of freedom."""
    from scipy.stats import t

    return float(t.isf(alpha, df))


def model_spread(gate: GateRows) -> tuple[float, float]:
    """Standard deviation between retrained models, and the part of it that independently varying rows give.

    The first is at least the second (and at least `fit_spread`), because a few models can be nearly equal by chance,
    thousands of rows hardly ever. Raises ValueError where the gate is not usable.
    """
    if not gate.usable:
        raise ValueError(f"gate {gate.path}: there are too few models or rows to estimate their spread")
    assert gate.widen is not None
    means = gate.retrained.mean(axis=1)
    between = gate.widen * float(means.std(ddof=1))
    by_rows = gate.widen * float(np.sqrt(gate.retrained.var(axis=0, ddof=1).mean() / gate.rows))
    return max(between, by_rows, gate.fit_spread), by_rows


def row_error(differences: NDArray[Any]) -> float:
    """Standard error of the mean of per-row differences `(n,)`."""
    return float(np.std(differences, ddof=1) / np.sqrt(len(differences)))


def half_width(gate: GateRows, differences: NDArray[Any], alpha: float) -> float:
    """Half width of the interval of `mean(differences)`, over models and rows; each end has the error rate `alpha`."""
    spread, _ = model_spread(gate)
    over_models = t_quantile(alpha, gate.references - 1) * spread * np.sqrt(1 + 1 / gate.references)
    over_rows = t_quantile(alpha, gate.rows - 1) * row_error(differences)
    return float(np.hypot(over_models, over_rows))


@dataclass(frozen=True)
class Power:
    """What a gate can decide on these rows, determined before any candidate is looked at.

    `excess` of the original, with `interval`. `tells`: the interval excludes 0 and its nearer end exceeds the range of
    the retrained models, so that a candidate can be refuted. `power`: in addition, a further retrained model would lie
    inside the margins with probability 1 - BETA, so that a claim can be shown. `reach`: the share of the excess within
    which such a model with its interval lies; the gate has power if it is at most the margin.
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
        lacks = f"{gate.references} retrained model{'s' * (gate.references != 1)} and {gate.rows} rows"
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
    """Half width of the interval of a further retrained model: the mean over the R models, each taken as that model."""
    others = gate.references - 1
    widths = []
    for k in range(gate.references):
        rest = np.delete(gate.retrained, k, axis=0).mean(axis=0)
        # The difference of one model to R - 1 others has the variance s^2 (1 + 1/(R - 1)), to R others s^2 (1 + 1/R).
        scale = np.sqrt((1 + 1 / gate.references) / (1 + 1 / others))
        widths.append(half_width(gate, (gate.retrained[k] - rest) * scale, ALPHA))
    return float(np.mean(widths))


def _deviation(gate: GateRows, spread: float) -> float:
    """Distance of a further retrained model from the mean of the others that is exceeded with probability BETA."""
    return t_quantile(BETA / 2, gate.references - 1) * spread * float(np.sqrt(1 + 1 / gate.references))


@dataclass(frozen=True)
class Share:
    """A candidate's value and its share of the excess, with the interval for passing and the wider one for refuting."""

    value: float
    target: float
    share: float | None
    interval: tuple[float, float] | None
    wide: tuple[float, float] | None

    @property
    def passed(self) -> bool:
        """Whether the interval lies inside the margins."""
        return self.interval is not None and self.interval[0] >= -OVERSHOT and self.interval[1] <= LEFT

    @property
    def refuted(self) -> bool:
        """Whether the wide interval lies outside the margins."""
        return self.wide is not None and (self.wide[0] > LEFT or self.wide[1] < -OVERSHOT)


def share_of(gate: GateRows, candidate: NDArray[Any], alpha_refute: float) -> Share:
    """Share of the excess of a candidate with per-row values `(n,)`.

    By the delta method the error of the ratio is that of `candidate - r - share (original - r)`, divided by the excess.
    This is valid where `power_of` says that the gate tells. Raises ValueError for another shape or non-finite values.
    """
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
    """Number of rows like these that would give the gate power; None where only more retrained models could.

    The excess and the part of the variance that all rows share are taken to stay, and the part that is independent
    between rows to fall with 1/n. Derived from `power_of`, with a normal quantile (1.645) for the rows. Raises
    ValueError where the gate is not usable.
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
