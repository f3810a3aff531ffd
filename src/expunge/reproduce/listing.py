"""The presets with their estimated costs, for `expunge reproduce --list` and for docs/reproduce.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from expunge.reproduce.costs import RATES, estimate, in_words
from expunge.reproduce.presets import load, names


@dataclass(frozen=True)
class Listed:
    """A preset and its cost in words: `times` has one value per machine of `costs.RATES`."""

    name: str
    title: str
    times: tuple[str, ...]
    disk: str
    memory: str


def listed(root: Path) -> Iterator[Listed]:
    """Yield every preset in alphabetical order; the cost of a toy is that of its process."""
    for name in names(root):
        found = load(root, name)
        if found.toy is not None:
            yield Listed(name, found.title, ("1 min", *["-"] * (len(RATES) - 1)), "-", "1 GB")
            continue
        params = found.params_of(root, next(iter(found.runs)), frozenset(), {})
        cost = estimate(params, len(found.runs), len(found.rounds))
        times = tuple(in_words(cost.hours[machine]) for machine in RATES)
        yield Listed(name, found.title, times, f"{cost.disk_gb:.0f} GB", f"{cost.memory_gb:.0f} GB")
