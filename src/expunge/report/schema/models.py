"""The models of a run: methods, and the references that they are compared with."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from expunge.report.metrics import METRICS
from expunge.report.schema.base import Count, Part, Seconds, metric
from expunge.report.schema.measures import Measures
from expunge.report.schema.shadow import ShadowAttacks
from expunge.report.schema.verdict import Verdict


class Settings(Part):
    """The settings of a method."""

    params: dict[str, Any]
    """`fit.NAME` of params.yaml."""
    chosen: dict[str, Any] | None
    """What was picked on held-out rows, and how each candidate fared; null where nothing was to pick."""
    fit_seeds: Count | None
    """Number of fits with seeds of their own; null where the method has no seed."""


class Exact(Part):
    """The record of a method that claims exact deletion. Further keys describe the procedure."""

    holds: bool | None
    """Whether the conditions of the claim hold; null where the method makes no such claim."""


class Cost(Part):
    """What the method cost in this run."""

    fit_s: Seconds = metric("cost.fit_s")
    evaluate_s: Seconds = metric("cost.evaluate_s")
    peak_rss_mb: float = metric("cost.peak_rss_mb")
    retrain_s: Seconds | None = None
    """Mean seconds to retrain a model; absent without retrained models."""
    speedup_vs_retrain: float | None = Field(None, description=METRICS["cost.speedup_vs_retrain"].name)


class Method(Measures):
    """One method: its metrics, settings, cost and verdict."""

    settings: Settings
    exact: Exact | None
    """Null for a method that does not claim exact deletion."""
    cost: Cost
    verdict: Verdict
    shadow: ShadowAttacks | None = None
    """Absent where the stage `shadow` did not attack the method."""


class Original(Measures):
    """The original classifier, judged like a method."""

    verdict: Verdict
    shadow: ShadowAttacks | None


class Retrained(Measures):
    """The retrained models: means over them. The verdict is that of the first against the others."""

    seeds: Count
    """Number of retrained models."""
    spread: dict[str, Any]
    """Standard deviation over the models, in the shape of the metrics; null with one model."""
    verdict: Verdict
    shadow: ShadowAttacks | None


class References(Part):
    """What every method is compared with."""

    original: Original
    retrained: Retrained | None
    """Null with `reference: skip`."""
    logit_mask: Method | None
    """The control, which is also among `methods`."""
