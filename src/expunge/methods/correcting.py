"""What a correction of labels asks of a method: that it can teach another label, and does not learn the old ones."""

from __future__ import annotations

from expunge.core.facts import Facts
from expunge.methods.inputs import FitInputs
from expunge.methods.method import Settings
from expunge.system.errors import QualityError


def refuse_correction(name: str, method: str, facts: Facts, request: FitInputs, instead: list[str]) -> None:
    """Raise QualityError where `request` corrects labels and the entry `name` has a `method` that takes away alone."""
    if request.corrects and "corrections" not in facts.requests:
        raise QualityError(
            f"{name}: {method} takes rows away and cannot teach another label; take {', '.join(instead)}"
        )


def taught(name: str, request: FitInputs, settings: Settings) -> Settings:
    """The settings of a method that may learn from the original's answers; with corrections it learns from labels."""
    if not request.corrects:
        return settings
    if settings.get("targets", "labels") != "labels":
        raise QualityError(f"{name}: targets: original would teach the labels that were corrected; set targets: labels")
    return {**settings, "targets": "labels"}
