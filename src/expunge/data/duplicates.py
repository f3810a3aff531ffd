"""Find retained rows that would undo an erasure: exact duplicates and near-duplicates of forgotten rows."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from expunge.data.dataset import Dataset
from expunge.system.errors import DataError

log = logging.getLogger(__name__)

Mask = np.ndarray
WARN, INCLUDE, REFUSE, IGNORE = "warn", "include", "refuse", "ignore"
POLICIES = (WARN, INCLUDE, REFUSE)


class Neighbours(Protocol):
    """A search for near rows in feature space; `expunge.features.nearby.Nearby` implements and documents it."""

    def distance(self) -> float | None:
        """Return the distance below which two rows count as near, or None if it cannot be measured."""

    def near(self, asked: Mask, others: Mask, distance: float) -> tuple[Mask, Mask]:
        """Return two masks: rows of `others` near one of `asked`, and rows of `asked` near one of `others`."""


@dataclass(frozen=True)
class Guarded:
    """The duplicates of forgotten rows that were found, and what the policy does with them.

    `left` counts the forgotten rows with a duplicate that stays in the retained data. `joined (rows,)` is the mask of
    duplicates that are added to the request, `twins (rows,)` that of all duplicates found. `distance` is the threshold
    below which rows count as near, None for exact duplicates.
    """

    left: int
    joined: Mask
    twins: Mask
    distance: float | None = None


def check_policy(key: str, value: str, known: tuple[str, ...]) -> None:
    """Raise DataError unless `value`, the setting `key`, is one of `known`."""
    if value not in known:
        raise DataError(f"{key} is {value!r}; choose one of {', '.join(known)}")


def exact_twins(dataset: Dataset, train: Mask, forget: Mask, policy: str) -> Guarded:
    """Find retained training rows whose content equals that of a forgotten row. `train`, `forget`: masks `(rows,)`.

    Raises DataError for an unknown policy, and for policy "refuse" if there are such rows.
    """
    check_policy("duplicates", policy, POLICIES)
    twins = np.zeros(len(train), dtype=bool)
    if not dataset.manifest["duplicates"]["rows"]:
        return Guarded(0, twins, twins)
    digests = dataset.digests()
    twins[train & ~forget] = np.isin(digests[train & ~forget], digests[forget])
    return _apply(
        "duplicates", "an exact duplicate", policy, int(np.isin(digests[forget], digests[twins]).sum()), twins
    )


def near_twins(neighbours: Neighbours | None, train: Mask, forget: Mask, exact: Mask, policy: str) -> Guarded:
    """Find retained training rows whose features are near those of a forgotten row, without the duplicates `exact`.

    `train`, `forget` and `exact` are masks `(rows,)`. With policy "include", the neighbours of included rows are
    included as well, until no new row is found. Raises DataError for an unknown policy, and for policy "refuse" if
    there are such rows.
    """
    check_policy("near_duplicates", policy, (*POLICIES, IGNORE))
    none = np.zeros(len(train), dtype=bool)
    distance = None if policy == IGNORE or neighbours is None or not forget.any() else neighbours.distance()
    if distance is None or neighbours is None:
        return Guarded(0, none, none)
    others = train & ~forget & ~exact
    twins, has = neighbours.near(forget, others, distance)
    new = twins
    while policy == INCLUDE and new.any():
        new = neighbours.near(new, others & ~twins, distance)[0]
        twins = twins | new
    return _apply("near_duplicates", "a near-duplicate", policy, int(has.sum()), twins, distance)


def _apply(key: str, what: str, policy: str, left: int, twins: Mask, distance: float | None = None) -> Guarded:
    if left and policy == REFUSE:
        raise DataError(
            f"{left} forgotten rows have {what} among the retained rows; set split.{key}: {INCLUDE} to forget it too"
        )
    if left and policy == INCLUDE:
        return Guarded(0, twins, twins, distance)
    if left:
        log.warning("%d forgotten rows have %s among the retained rows, which undoes their erasure", left, what)
    return Guarded(left, np.zeros_like(twins), twins, distance)
