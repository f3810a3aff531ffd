"""Per-row attacks over many models: U-LiRA, RMIA over an ensemble, KLoM and the NeurIPS-2023 forgetting score.

They compare, for each row, the scores of models that had the row (and then unlearned it) with those of models that
never had it. Scores are margins `log p_y - log(1 - p_y)`, clipped to [-MARGIN_LIMIT, MARGIN_LIMIT]. The target is that
the two distributions cannot be distinguished: AUC 0.5, epsilon 0, and KLoM as between two halves of the retrained
models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.divergence import Floats, check_logits
from expunge.evaluation.membership import rmia_scores, sorted_auc, sorted_tpr
from expunge.evaluation.threads import beside

MARGIN_LIMIT = 100.0
FPRS = {"tpr_at_fpr_1pct": 0.01, "tpr_at_fpr_01pct": 0.001}
CHUNK = 256  # rows at a time: bounds memory, and a chunk of a few hundred models fits in the processor's cache


def margins(logits: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """Margin log(p_y / (1 - p_y)) = logit_y - logsumexp of the other logits, per row `(n,)`, from logits `(n, C)`.

    Clipped to [-MARGIN_LIMIT, MARGIN_LIMIT]. Raises ValueError for fewer than two classes.
    """
    x = check_logits(logits)
    rows, y = np.arange(len(x)), np.asarray(labels)
    if x.shape[1] < 2:
        raise ValueError("a margin needs at least two classes")
    own = x[rows, y]
    others = x.copy()
    others[rows, y] = -np.inf
    rest = np.logaddexp.reduce(others, axis=1)
    return np.asarray(np.clip(own - rest, -MARGIN_LIMIT, MARGIN_LIMIT))


def _check(scores: NDArray[Any], member: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    s, m = np.asarray(scores), np.asarray(member, dtype=bool)
    if s.ndim != 2 or s.shape != m.shape:
        raise ValueError(f"scores and member must both be (models, rows), got {s.shape} and {m.shape}")
    if not np.isfinite(s).all():
        raise ValueError("scores must be finite; clip the margins first")
    return s, m


def lira_scores(scores: NDArray[Any], member: NDArray[Any]) -> NDArray[np.float32]:
    """Log likelihood ratio of each score under "the model had the row" against "it never had it", `(m, n)` float32.

    `scores (m, n)`; `member (m, n)` bool: model i had row j (and unlearned it). For each row a Gaussian is fitted to
    the scores of either side, without the model that is scored, so that no score is judged by a fit to itself. NaN for
    rows with fewer than 3 models on a side. Variances are at least 1e-6 of the mean variance. Source: Carlini et al.
    (2022), online LiRA; Hayes et al. (2024) for unlearned against retrained models.
    """
    s, m = _check(scores, member)
    ratio = np.full(s.shape, np.nan, dtype=np.float32)
    floor = 1e-6 * float(np.mean(s.var(axis=0))) + 1e-12
    for start in range(0, s.shape[1], CHUNK):
        x, inside = s[:, start : start + CHUNK].astype(np.float64), m[:, start : start + CHUNK]
        x = x - x.mean(axis=0)  # centring avoids cancellation in the sums of squares below
        log_likelihood = []
        for side in (inside, ~inside):
            # Leave-one-out sums: a model on this side is taken out of its own fit.
            n = side.sum(axis=0) - side
            total = np.where(side, x, 0.0).sum(axis=0) - np.where(side, x, 0.0)
            squares = np.where(side, x * x, 0.0).sum(axis=0) - np.where(side, x * x, 0.0)
            mean = total / np.maximum(n, 1)
            variance = np.maximum(squares / np.maximum(n, 1) - mean * mean, floor)
            log_likelihood.append(-0.5 * (np.log(variance) + (x - mean) ** 2 / variance))
        known = np.minimum(inside.sum(axis=0), (~inside).sum(axis=0)) >= 3
        ratio[:, start : start + CHUNK] = np.where(known, log_likelihood[0] - log_likelihood[1], np.nan)
    return ratio


@dataclass(frozen=True)
class _Sides:
    """Scores that are not NaN, in ascending order: `own` of models that had the row, `others` of those that had not.

    `own_by` and `others_by`: the models that made them.
    """

    own: NDArray[Any]
    own_by: NDArray[np.intp]
    others: NDArray[Any]
    others_by: NDArray[np.intp]

    @staticmethod
    def of(scores: NDArray[Any], member: NDArray[np.bool_], models: NDArray[np.intp] | None) -> _Sides:
        """Sort scores `(m, n)` once: there may be tens of millions of them. Other arguments as in `tpr_interval`."""
        made_by = np.broadcast_to(np.arange(len(scores))[:, None], scores.shape) if models is None else models
        known = ~np.isnan(scores)

        def ranked(side: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.intp]]:
            values = scores[side]
            order = np.argsort(values)
            return values[order], made_by[side][order]

        own, others = beside(ranked, (member & known, ~member & known))
        return _Sides(*own, *others)

    def interval(self, fpr: float, draws: int = 200, seed: int = 0) -> tuple[float, float] | tuple[None, None]:
        """Return what `tpr_interval` does."""
        if not len(self.own) or not len(self.others):
            return None, None
        count = 1 + int(max(self.own_by.max(), self.others_by.max()))
        n_own, n_others = np.bincount(self.own_by, minlength=count), np.bincount(self.others_by, minlength=count)
        groups = [g for g in (np.flatnonzero((n_own > 0) & (n_others == 0)), np.flatnonzero(n_others)) if len(g)]
        rng = np.random.default_rng(seed)
        found = []
        for _ in range(draws):
            weight = np.zeros(count, dtype=np.int64)
            for group in groups:
                weight[group] = rng.multinomial(len(group), np.full(len(group), 1 / len(group)))
            at = self._first_above(weight, int(np.floor(fpr * int(weight @ n_others) + 1e-9)))
            if at is None or not weight @ n_own:
                continue  # the models drawn have no score on one side
            above = np.searchsorted(self.own, self.others[at], side="right")
            caught = np.bincount(self.own_by[above:], minlength=count)
            found.append(float(weight @ caught / (weight @ n_own)))
        low, high = np.percentile(found, [2.5, 97.5])
        return float(low), float(high)

    def _first_above(self, weight: NDArray[np.int64], allowed: int) -> int | None:
        """Position in `others` of the largest score with which the weights, from the top on, exceed `allowed`.

        `weight`: of each model. None if all of them do not exceed it. Only the top is looked at, as far as needed,
        because `allowed` is a small share of the scores.
        """
        n, part = len(self.others), 2 * allowed + 2
        while True:
            above = np.cumsum(weight[self.others_by[::-1][:part]]) > allowed
            if above[-1]:
                return n - 1 - int(np.argmax(above))
            if part >= n:
                return None
            part *= 2


def _attack(own: NDArray[Any], others: NDArray[Any]) -> dict[str, float | None]:
    """Return AUC and TPRs of the attack that calls large scores members; both sides in ascending order."""
    rates = {name: sorted_tpr(own, others, fpr) for name, fpr in FPRS.items()}
    return {"auc": sorted_auc(own, others), **rates}


def ulira(
    scores: NDArray[Any], member: NDArray[Any], models: NDArray[np.intp] | None = None
) -> dict[str, float | None]:
    """U-LiRA: AUC and TPR at 1 % and 0.1 % FPR of `lira_scores`, over all models and rows; None without usable rows.

    Range [0, 1]; targets 0.5, 0.01 and 0.001. To compare unlearned with retrained models, stack their scores and mark
    the unlearned ones as members. `tpr_at_fpr_01pct_low` and `_high` are the interval of the TPR at 0.1 % FPR, from
    `tpr_interval`, to which `models` is passed.
    """
    s, m = _check(scores, member)
    sides = _Sides.of(lira_scores(s, m), m, models)
    low, high = sides.interval(FPRS["tpr_at_fpr_01pct"])
    return _attack(sides.own, sides.others) | {"tpr_at_fpr_01pct_low": low, "tpr_at_fpr_01pct_high": high}


def tpr_interval(
    scores: NDArray[Any],
    member: NDArray[np.bool_],
    fpr: float,
    models: NDArray[np.intp] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> tuple[float, float] | tuple[None, None]:
    """95 % percentile bootstrap interval of the TPR at `fpr`; the bootstrap draws whole models.

    `scores (m, n)`, NaN for a pair that does not count; `member (m, n)` bool; `models (m, n)`: index of the model that
    made a score; None means that row i of `scores` is model i. Scores of one model are not independent, so whole models
    are drawn instead of single scores. Models that had every row are drawn as a group of their own, so that no resample
    lacks a side. (None, None) where a side has no score. With few models the interval is too narrow, as that of every
    bootstrap over few units.
    """
    return _Sides.of(scores, member, models).interval(fpr, draws, seed)


def rmia(
    probability: NDArray[Any],
    member: NDArray[Any],
    population: NDArray[Any],
    gamma: float = 1.0,
    scored: NDArray[Any] | None = None,
) -> dict[str, float | None]:
    """RMIA over an ensemble: every model in turn is the target, and all others are its references.

    `probability (m, n)` and `population (m, k)`: true-class probabilities of the rows, and of population rows that no
    model had. `member (m, n)` bool as in `ulira`. `scored (m, n)` bool: the pairs of model and row that count; None
    means all. Returns AUC and TPRs as `ulira` does, without the interval. Raises ValueError for fewer than two models.
    """
    p, m = _check(probability, member)
    if len(p) < 2:
        raise ValueError("RMIA needs a target and at least one reference model")
    q = np.asarray(population)
    sums = p.sum(axis=0, dtype=np.float64), q.sum(axis=0, dtype=np.float64)

    def score(i: int) -> NDArray[Any]:
        others = [((total - x[i]) / (len(p) - 1))[None] for total, x in zip(sums, (p, q), strict=True)]
        return rmia_scores(p[i], others[0], q[i], others[1], gamma).astype(np.float32)

    scores: NDArray[Any] = np.stack(beside(score, range(len(p))))
    known = ~np.isnan(scores) if scored is None else np.asarray(scored, dtype=bool) & ~np.isnan(scores)
    return _attack(*beside(np.sort, (scores[m & known], scores[~m & known])))


def klom_rows(unlearned: NDArray[Any], retrained: NDArray[Any], bins: int = 20) -> Floats:
    """KLoM: KL(unlearned || retrained) of the two margin histograms per row `(n,)`, nats.

    Input: margins `(m, n)` and `(m', n)`. Each row has `bins` equal bins between the smallest and the largest margin of
    both sides; empty retrained bins count as 1e-5. Source: Georgiev et al. (2024), with bins and floor as in public
    implementations. Range [0, 11.6]. With few models the value is large by chance, so compare it with that between two
    halves of the retrained models. Raises ValueError for margins of different rows or with NaN.
    """
    a, b = (np.clip(np.asarray(x, np.float64), -MARGIN_LIMIT, MARGIN_LIMIT) for x in (unlearned, retrained))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(f"margins must be (models, rows) of the same rows, got {a.shape} and {b.shape}")
    if np.isnan(a).any() or np.isnan(b).any():
        raise ValueError("margins must not be NaN")
    result = []
    for start in range(0, a.shape[1], CHUNK):
        x, y = a[:, start : start + CHUNK], b[:, start : start + CHUNK]
        low = np.minimum(x.min(axis=0), y.min(axis=0))
        width = np.maximum(np.maximum(x.max(axis=0), y.max(axis=0)) - low, 1e-12) / bins
        p, q = (_histogram(v, low, width, bins) for v in (x, y))
        result.append((p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-5)))).sum(axis=1))
    return np.maximum(np.concatenate(result), 0.0) if result else np.empty(0)


def _histogram(x: Floats, low: Floats, width: Floats, bins: int) -> Floats:
    index = np.clip(((x - low) / width).astype(np.int64), 0, bins - 1) + bins * np.arange(x.shape[1])
    return np.bincount(index.ravel(), minlength=bins * x.shape[1]).reshape(-1, bins) / len(x)


def klom(unlearned: NDArray[Any], retrained: NDArray[Any]) -> dict[str, float | None]:
    """50th, 95th and 99th percentiles of `klom_rows` over rows; None without rows. Lower is better."""
    rows = klom_rows(unlearned, retrained)
    return {f"p{q}": float(np.percentile(rows, q)) if len(rows) else None for q in (50, 95, 99)}


def epsilon_rows(unlearned: NDArray[Any], retrained: NDArray[Any], delta: float = 1e-5) -> Floats:
    """Largest epsilon per row `(n,)` that an attack demonstrates between unlearned and retrained models; may be inf.

    Input: margins `(m, n)` and `(m', n)`. An attack with rates FPR and FNR gives max(log(1 - delta - FPR) - log FNR,
    log(1 - delta - FNR) - log FPR). Attacks with exactly one rate of 0 are left out, and an attack that separates
    perfectly gives inf. The result is at least 0. The attacks are every single threshold on the margin in both
    directions and every interval between two thresholds, with thresholds at the midpoints of the observed margins.
    Source: Triantafillou et al. (2024), Algorithm 1. Raises ValueError for margins of different rows.
    """
    a, b = np.asarray(unlearned, np.float64), np.asarray(retrained, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(f"margins must be (models, rows) of the same rows, got {a.shape} and {b.shape}")
    return np.array(
        [
            max((_epsilon(fpr, fnr, delta) for fpr, fnr in _attacks(x, y)), default=0.0)
            for x, y in zip(a.T, b.T, strict=True)
        ]
    )


def _attacks(x: Floats, y: Floats) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """(FPR, FNR) of all threshold and interval attacks, where x is the positive and y the negative side."""
    levels = np.unique(np.concatenate([x, y]))
    below_x = np.concatenate([[0], np.searchsorted(np.sort(x), levels, side="right")]) / len(x)
    below_y = np.concatenate([[0], np.searchsorted(np.sort(y), levels, side="right")]) / len(y)
    # The intervals (t_i, t_j] with t_0 = -inf and t_last = +inf include the single thresholds in both directions.
    i, j = np.triu_indices(len(below_x), k=1)
    yield below_y[j] - below_y[i], 1.0 - (below_x[j] - below_x[i])


def _epsilon(fpr: NDArray[Any], fnr: NDArray[Any], delta: float) -> float:
    fpr, fnr = np.where(fpr < 1e-12, 0.0, fpr), np.where(fnr < 1e-12, 0.0, fnr)
    if ((fpr == 0) & (fnr == 0)).any():
        return float("inf")
    use = (fpr > 0) & (fnr > 0)
    f, g = fpr[use], fnr[use]
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.stack([np.log(1 - delta - f) - np.log(g), np.log(1 - delta - g) - np.log(f)])
    both = both[np.isfinite(both)]
    return max(float(both.max()), 0.0) if len(both) else 0.0


def forgetting_score(epsilons: NDArray[Any], bin_width: float = 0.5, bins: int = 13) -> float | None:
    """Forgetting quality of the NeurIPS-2023 challenge: the mean over rows of 2 / 2^k.

    k = 1 + floor(epsilon / bin_width), at most `bins`. Range (0, 1]; higher is better; 1 if every epsilon is below
    `bin_width`. None without rows. Raises ValueError for a negative epsilon or NaN. Source: Triantafillou et al.
    (2024), section 4.
    """
    eps = np.asarray(epsilons, np.float64)
    if np.isnan(eps).any() or (eps < 0).any():
        raise ValueError("epsilons must be non-negative")
    index = np.clip(np.digitize(eps, np.arange(bins) * bin_width), 1, bins)
    return float(np.mean(2.0 / 2.0**index)) if len(eps) else None
