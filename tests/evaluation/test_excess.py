"""The share of the original's excess that is left has an interval, and a gate has power or says why it has none.

Intervals are compared with SciPy, and their coverage is simulated.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from expunge.evaluation.excess import GateRows, half_width, model_spread, power_of, rows_needed, share_of

ROWS = 200


def gate(original: float, retrained: list[float], noise: float = 0.0, rows: int = ROWS, **fields: float) -> GateRows:
    """Return a gate whose models differ by a level each, and whose rows differ by independent noise."""
    rng = np.random.default_rng(0)
    levels = np.array([original, *retrained])[:, None] + noise * rng.normal(size=(len(retrained) + 1, rows))
    return GateRows("x", "outputs", levels[0], levels[1:], **fields)


def test_the_interval_over_models_is_students_prediction_interval() -> None:
    means = [0.50, 0.53, 0.51]
    g = gate(0.9, means)
    low, high = stats.t.interval(0.90, 2, loc=0, scale=np.std(means, ddof=1) * np.sqrt(1 + 1 / 3))
    assert half_width(g, np.zeros(ROWS), 0.05) == pytest.approx((high - low) / 2)


def test_the_interval_over_rows_is_students_and_joins_by_the_sum_of_squares() -> None:
    g = gate(0.9, [0.50, 0.53, 0.51])
    x = np.random.default_rng(1).normal(size=ROWS)
    models = half_width(g, np.zeros(ROWS), 0.05)
    rows = stats.t.isf(0.05, ROWS - 1) * stats.sem(x)
    assert half_width(g, x, 0.05) == pytest.approx(np.sqrt(models**2 + rows**2))


def test_rows_that_vary_by_themselves_bound_the_spread_from_below() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(size=(3, ROWS))
    level = base - base.mean(axis=1, keepdims=True)  # The three means are equal, as they may be by chance.
    spread, by_rows = model_spread(GateRows("x", "outputs", np.ones(ROWS), level))
    assert spread == by_rows == pytest.approx(np.sqrt(level.var(axis=0, ddof=1).mean() / ROWS))


def test_the_share_is_one_for_the_original_and_zero_for_the_mean() -> None:
    g = gate(0.9, [0.50, 0.53, 0.51], noise=0.05)
    assert share_of(g, g.original, 0.05).share == pytest.approx(1.0)
    assert share_of(g, g.retrained.mean(axis=0), 0.05).share == pytest.approx(0.0, abs=1e-12)
    over = share_of(g, g.retrained.mean(axis=0) - 0.4, 0.05)
    assert over.share is not None and over.share < -0.9 and over.refuted and not over.passed


def test_a_further_model_is_covered_and_seldom_refuted() -> None:
    """In 2,000 draws the 90 % interval covers the expected share, 0, as often as stated, and under 5 % are refuted."""
    rng = np.random.default_rng(3)
    inside = refuted = 0
    for _ in range(2000):
        levels = rng.normal(0.5, 0.02, 4)
        g = GateRows("x", "outputs", np.full(30, 0.7), np.repeat(levels[:3, None], 30, axis=1))
        found = share_of(g, np.full(30, levels[3]), 0.05)
        assert found.interval is not None
        inside += found.interval[0] <= 0.0 <= found.interval[1]
        refuted += found.refuted
    assert 0.88 <= inside / 2000 <= 0.92
    assert refuted / 2000 < 0.05


def test_symmetric_divergences_count_no_pair_twice() -> None:
    """For d(j, k) = a_j + a_k the widened leave-one-out means have the spread of a, which is a candidate's own part."""
    a = np.array([0.1, 0.25, 0.17, 0.4])
    means = np.array([np.mean([a[k] + a[j] for j in range(4) if j != k]) for k in range(4)])
    g = GateRows("x", "outputs", np.ones(ROWS), np.repeat(means[:, None], ROWS, axis=1), widen=3 / 2)
    assert model_spread(g)[0] == pytest.approx(np.std(a, ddof=1))


@pytest.mark.parametrize(
    ("retrained", "rows", "word"),
    [([0.5, 0.5], 200, "2 retrained"), ([0.5, 0.5, 0.5], 19, "19 rows"), ([], 200, "no re")],
)
def test_too_few_models_or_rows_have_no_power(retrained: list[float], rows: int, word: str) -> None:
    g = GateRows("x", "outputs", np.ones(rows), np.array([[v] * rows for v in retrained]).reshape(len(retrained), rows))
    found = power_of(g)
    assert not found.tells and not found.power and word in found.reason


def test_power_needs_an_excess_beyond_the_spread_and_a_margin_a_retrained_model_meets() -> None:
    assert not power_of(gate(0.52, [0.50, 0.53, 0.51])).tells
    middling = power_of(gate(0.70, [0.50, 0.53, 0.51]))
    assert middling.tells and not middling.power and middling.reach is not None and middling.reach > 0.25
    strong = power_of(gate(0.95, [0.500, 0.503, 0.501]))
    assert strong.power and strong.reach is not None and strong.reach <= 0.25


def test_the_rows_needed_give_power_and_fewer_do_not() -> None:
    rng = np.random.default_rng(4)

    def drawn(n: int) -> GateRows:
        return GateRows("x", "outputs", 1.0 + rng.normal(size=n), rng.normal(size=(3, n)))

    needed = rows_needed(drawn(500))
    assert needed is not None and 100 < needed < 100_000
    shares = {n: np.mean([power_of(drawn(n)).power for _ in range(20)]) for n in (needed // 10, needed * 4)}
    assert shares[needed // 10] <= 0.2 and shares[needed * 4] >= 0.6
    assert rows_needed(gate(0.70, [0.50, 0.55, 0.51])) is None  # More rows do not average out levels.


@pytest.mark.parametrize("values", [np.full(ROWS, np.nan), np.ones(ROWS - 1)])
def test_bad_values_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite"):
        share_of(gate(0.9, [0.5, 0.5, 0.5]), values, 0.05)


def test_a_gate_that_only_refutes_never_has_power() -> None:
    showing = gate(0.9, [0.50, 0.503, 0.501], noise=0.01)
    refuting = gate(0.9, [0.50, 0.503, 0.501], noise=0.01, shows=False)
    assert power_of(showing).power and not power_of(refuting).power and power_of(refuting).tells
    assert share_of(refuting, refuting.original, 0.05).refuted
