"""What a run shows about one model: gates, claims and utility."""

from __future__ import annotations

from typing import Literal

from expunge.report.schema.base import Count, Interval, Part

Outcome = Literal["shown", "refuted", "cannot tell"]
UtilityOutcome = Literal["kept", "lost", "cannot tell"]


class Gate(Part):
    """One measure that a claim is judged by."""

    path: str
    """Dotted path of the metric."""
    claim: Literal["outputs", "features", "backbone"]
    """The claim that it belongs to."""
    power: bool
    """Whether it can show the claim: a further retrained model would pass it."""
    tells: bool
    """Whether it tells the original from retrained models, so that it can refute the claim."""
    rows: Count
    """Number of rows that it counts."""
    excess: float
    """The original's value less the mean of the retrained models."""
    excess_interval: Interval | None
    """Interval of the excess over models and rows."""
    value: float | None
    """The model's value."""
    target: float
    """The mean of the retrained models."""
    share: float | None
    """(value - target) / excess: 1 for the original, 0 for a retrained model on average."""
    interval: Interval | None
    """Interval of the share."""
    passed: bool | None
    """Whether the interval lies within the margins; null without power."""
    refuted: bool
    """Whether a wider interval lies outside the margins."""
    reason: str
    """Why the measure has no power; empty where it has."""
    fit_spread: float
    """Standard deviation of the value over the method's fit seeds; 0 with one fit."""
    rows_needed: float | None
    """How many rows would give it power; null where it has power or where no number of rows helps."""


class Claims(Part):
    """The outcome of every erasure claim."""

    outputs: Outcome
    """The model answers on forgotten rows as retrained models do."""
    features: Outcome
    """What the head reads says no more about forgotten rows than a retrained model's features."""
    backbone: Outcome
    """The backbone's features say no more about them either."""
    exact: Outcome
    """By construction the weights depend on retained rows, public weights and the seed alone."""


class Reasons(Part):
    """The reason of every outcome, in words."""

    outputs: str
    features: str
    backbone: str
    exact: str


class UtilityPart(Part):
    """Accuracy on one part of the rows against the retrained models."""

    difference: float
    """Accuracy of the model less that of the retrained models."""
    interval: Interval
    """Interval of the difference."""
    outcome: UtilityOutcome
    """Whether the accuracy was kept on this part."""


class Verdict(Part):
    """What the run shows about one model."""

    utility: UtilityOutcome
    """Whether the model is as accurate as retrained models on retained and test rows."""
    claims: Claims
    gates: list[Gate]
    why: str
    """One sentence for a person."""
    reasons: Reasons
    references: int
    """Number of retrained models that the model was compared with."""
    control: str | None
    """The negative control that the model is by what it says; else null."""
    choice: float | None
    """Largest absolute share on the rows that the verdict does not use. A method is selected by it."""
    utility_parts: dict[str, UtilityPart]
    """Utility on `retain` and `test_retain`."""
    utility_against: Literal["retrained", "original"]
    """What utility is compared with: the original where there are no retrained models."""
