"""A conflict, as one line for people and as fields for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass


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
