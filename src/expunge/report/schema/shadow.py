"""Attacks that need many models."""

from __future__ import annotations

from typing import Any, Literal

from expunge.report.schema.base import Count, Part, Share, metric


class Attack(Part):
    """An attack over shadow models."""

    auc: Share | None
    """Area under the ROC curve."""
    tpr_at_fpr_1pct: Share | None
    """True positive rate at a false positive rate of 1 %."""
    tpr_at_fpr_01pct: Share | None
    """True positive rate at a false positive rate of 0.1 %."""


class Ulira(Attack):
    """U-LiRA, with an interval that draws whole models."""

    tpr_at_fpr_01pct_low: Share | None
    """Lower end of the 95 % interval of the true positive rate at 0.1 %."""
    tpr_at_fpr_01pct_high: Share | None
    """Upper end."""


class Klom(Part):
    """KL divergence of margins between unlearned and retrained models: percentiles over rows, nats."""

    p50: float | None = metric("shadow.klom.p50")
    p95: float | None = metric("shadow.klom.p95")
    p99: float | None = metric("shadow.klom.p99")


class ShadowAttacks(Part):
    """Attacks that need many models."""

    unlearned_by: str | None = None
    """How the shadow models forgot the rows; absent for the references."""
    ulira: Ulira
    rmia: Attack
    """RMIA with shadow models as references."""
    klom: Klom
    forgetting_score: Share | None = metric("shadow.forgetting_score")


class Shadow(Part):
    """The stage `shadow`: how many models it trained, and for which methods."""

    kind: Literal["off", "refused", "heads", "networks"]
    """Which shadow models were trained."""
    valid_because: str | None = None
    """Why the attacks may be read; absent where none ran."""
    refused_because: str | None = None
    """What was refused and why; absent where nothing was."""
    models: dict[str, Count] | None = None
    """Numbers of models."""
    rows: dict[str, Count] | None = None
    """Numbers of rows."""
    recipe: dict[str, Any] | None = None
    """Settings of their training."""
    not_covered: dict[str, str] | None = None
    """Methods that were not attacked, each with the reason."""
