"""Conflicts, and the result of a check, as lines for people and as fields for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    """`where`: a key of params.yaml or a file. `problem`: what is wrong. `way_out`: what to do about it, perhaps ""."""

    where: str
    problem: str
    way_out: str = ""

    @classmethod
    def from_error(cls, where: str, words: str | Exception) -> Problem:
        """Return the problem in an error's line, `params.yaml: KEY: PROBLEM; WAY OUT`.

        The problem does not repeat `where`.
        """
        line = str(words).replace("\n", " ").removeprefix("params.yaml: ")
        what, _, way_out = line.partition("; ")
        return cls(where, what.removeprefix(f"{where}: ").removeprefix(f"{where} "), way_out)

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}" + (f"; {self.way_out}" if self.way_out else "")

    def to_json(self) -> dict[str, str]:
        """Return the fields by name."""
        return asdict(self)


@dataclass
class Report:
    """Result of a check.

    `problems`: conflicts, each of which would end a run. `notes`: what could not be checked yet, and why. `needs`: disk
    and memory in gigabytes, None if unknown. `seconds`: times of the last run's stages, by their names in dvc.yaml.
    """

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    needs: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what `expunge check --json` prints and `.expunge/check.json` holds."""
        return {
            "schema": 1,
            "problems": [p.to_json() for p in self.problems],
            "notes": self.notes,
            "needs": self.needs,
            "seconds": self.seconds,
        }
