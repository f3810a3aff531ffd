"""Attacks that compare many unlearned models with many models that never had the forgotten rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.ulira import epsilon_rows, forgetting_score, klom_rows, rmia, ulira

EPSILON_ROWS = 500  # rows of the forgetting score, whose cost per row is quadratic in the number of models


@dataclass(frozen=True)
class ShadowMargins:
    """Margins of m models on the forgotten rows `(m, n)` and on population rows that no model had `(m, k)`.

    `had (m, n)` bool: which model had which forgotten row before unlearning it, with the same number of models for
    every row; None if all models had all rows, or none had any.
    """

    forget: NDArray[Any]
    population: NDArray[Any]
    had: NDArray[np.bool_] | None = None

    def dense(self) -> NDArray[Any]:
        """Margins `(m', n)` of the m' models that had each row. Raises ValueError if their number differs by row."""
        if self.had is None:
            return self.forget
        counts = np.unique(self.had.sum(axis=0))
        if len(counts) > 1:
            raise ValueError("every row must have been in the same number of models")
        return self.forget.T[self.had.T].reshape(self.forget.shape[1], -1).T

    def made_by(self) -> NDArray[np.intp]:
        """Index of the model that made each margin of `dense`, `(m', n)`."""
        if self.had is None:
            return np.broadcast_to(np.arange(len(self.forget))[:, None], self.forget.shape)
        return np.nonzero(self.had.T)[1].reshape(self.forget.shape[1], -1).T

    def part(self, start: int, stop: int) -> ShadowMargins:
        """The models from `start` up to, but without, `stop`."""
        had = None if self.had is None else self.had[start:stop]
        return ShadowMargins(self.forget[start:stop], self.population[start:stop], had)


def against(unlearned: ShadowMargins, retrained: ShadowMargins, group: int, seed: int) -> dict[str, Any]:
    """U-LiRA, RMIA, KLoM percentiles and the NeurIPS-2023 forgetting score of one method.

    KLoM and the score depend on the number of models compared. They therefore compare `group` models with `group`
    models, over as many disjoint pairs of groups as there are. This makes values of different methods, and the value
    between two groups of retrained models, comparable. Raises ValueError if either side has fewer than `group` models.
    """
    had, never = unlearned.dense(), retrained.forget
    margins = np.concatenate([had, never])
    inside = np.repeat([True, False], [len(had), len(never)])[:, None] & np.ones(margins.shape, dtype=bool)
    pairs = list(_groups(had, never, group))
    klom = np.concatenate([klom_rows(a, b) for a, b in pairs])
    rows = np.random.default_rng([seed, 0]).permutation(margins.shape[1])[:EPSILON_ROWS]
    epsilons = np.concatenate([epsilon_rows(a[:, rows], b[:, rows]) for a, b in pairs])
    return {
        "ulira": ulira(
            margins, inside, np.concatenate([unlearned.made_by(), len(unlearned.forget) + retrained.made_by()])
        ),
        "rmia": _rmia(unlearned, retrained),
        "klom": {f"p{q}": float(np.percentile(klom, q)) for q in (50, 95, 99)},
        "forgetting_score": forgetting_score(epsilons),
    }


def floor(retrained: ShadowMargins, seed: int) -> dict[str, Any]:
    """The noise floor of `against`: its values between two halves of the retrained models."""
    half = len(retrained.forget) // 2
    return against(retrained.part(0, half), retrained.part(half, 2 * half), half, seed)


def _groups(had: NDArray[Any], never: NDArray[Any], group: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    if group < 1 or min(len(had), len(never)) < group:
        raise ValueError(f"each side needs at least {group} models to form a group, got {len(had)} and {len(never)}")
    for start in range(0, min(len(had), len(never)) - group + 1, group):
        yield had[start : start + group], never[start : start + group]


def _rmia(unlearned: ShadowMargins, retrained: ShadowMargins) -> dict[str, float | None]:
    forget = _probability(np.concatenate([unlearned.forget, retrained.forget]))
    population = _probability(np.concatenate([unlearned.population, retrained.population]))
    had = np.ones(unlearned.forget.shape, dtype=bool) if unlearned.had is None else unlearned.had
    never = np.zeros(retrained.forget.shape, dtype=bool)
    return rmia(forget, np.concatenate([had, never]), population, scored=np.concatenate([had, ~never]))


def _probability(margins: NDArray[Any]) -> NDArray[np.float32]:
    """Probability of the true class, from its margin log p - log(1 - p)."""
    return np.asarray(1.0 / (1.0 + np.exp(-margins.astype(np.float64))), dtype=np.float32)
