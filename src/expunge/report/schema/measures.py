"""The metrics of one model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from expunge.report.schema.base import Interval, Part, Share, metric


class Accuracy(Part):
    """Accuracy on each part of the rows; null where a part has no row."""

    retain: Share | None = metric("accuracy.retain")
    forget: Share | None = metric("accuracy.forget")
    test_retain: Share | None = metric("accuracy.test_retain")
    test_forget: Share | None = metric("accuracy.test_forget")


class Gap(Part):
    """Accuracies against those of the retrained models; null without retrained models."""

    mean: Share | None = metric("gap.mean")
    tow: Share | None = metric("gap.tow")


class Divergence(Part):
    """Mean over rows of the divergence from the retrained models; null without retrained models."""

    kl: float | None
    """KL(retrained || model), nats."""
    js: float | None
    """Jensen-Shannon divergence, nats, at most ln 2."""
    agreement: Share | None
    """Share of rows on which both models predict the same class."""
    activation_distance: float | None
    """Euclidean distance between the probabilities of both models."""


class ForgetDivergence(Divergence):
    """The same on forgotten rows."""

    zrf_uniform: float | None = metric("divergence.forget.zrf_uniform")


class Divergences(Part):
    """Divergence from the retrained models on two sets of rows."""

    forget: ForgetDivergence
    test: Divergence


class MiaSvc(Part):
    """Share of forgotten rows that a support vector machine calls members, one attack per feature."""

    confidence: Share | None = metric("membership.mia_svc.confidence")
    correctness: Share | None = metric("membership.mia_svc.correctness")
    entropy: Share | None = metric("membership.mia_svc.entropy")
    modified_entropy: Share | None = metric("membership.mia_svc.modified_entropy")
    prob: Share | None = metric("membership.mia_svc.prob")


class Membership(Part):
    """Membership inference attacks on the forgotten rows; null where there is nothing to compare with."""

    loss_auc: Share | None = metric("membership.loss_auc")
    tpr_at_fpr_1pct: Share | None = metric("membership.tpr_at_fpr_1pct")
    tpr_at_fpr_01pct: Share | None = metric("membership.tpr_at_fpr_01pct")
    mia_lr_member: Share | None = metric("membership.mia_lr_member")
    mia_svc: MiaSvc
    rmia_auc: Share | None = metric("membership.rmia_auc")
    canary_auc: Share | None = metric("membership.canary_auc")
    class_geometry: Share | None = metric("membership.class_geometry")
    retain_loss_auc: Share | None = metric("membership.retain_loss_auc")


class Cka(Part):
    """Linear CKA of what the head reads with the features of other models."""

    original: float | None = metric("representation.cka.original")
    retrained: float | None = metric("representation.cka.retrained")


class Representation(Part):
    """What the features say about forgotten rows. `z` are the backbone's features, `z'` is what the head reads."""

    target: Literal["forgotten class", "forgotten or never seen"]
    """What the probes are trained to recognise."""
    probe_z: Share | None = metric("representation.probe_z")
    probe_z_prime: Share | None = metric("representation.probe_z_prime")
    stages: dict[str, Share | None]
    """Accuracy of linear probes inside the backbone, `probe_1` nearest to the input."""
    alignment_z: float | None = metric("representation.alignment_z")
    alignment_z_prime: float | None = metric("representation.alignment_z_prime")
    knn_z: Share | None = metric("representation.knn_z")
    knn_z_prime: Share | None = metric("representation.knn_z_prime")
    cka: Cka


class Relearn(Part):
    """How fast the forgotten rows are learnt again."""

    target_accuracy: Share | None
    """95 % of the original's accuracy on forgotten rows."""
    steps: float | None = metric("relearn.steps")
    area: Share | None = metric("relearn.area")
    curve: list[Share]
    """Accuracy on forgotten rows after each step."""
    prototype_samples: float | None = metric("relearn.prototype_samples")


class Calibration(Part):
    """Expected calibration error."""

    ece_test_retain: Share | None = metric("calibration.ece_test_retain")


class PerClass(Part):
    """Recall of every class on retained test rows, in the order of the classes; null for a class without rows."""

    accuracy: list[Share | None]
    """Recall."""
    damage: list[float | None]
    """Recall that was lost against the original."""
    worst_class: float | None
    """Index of the class that lost most."""


class Canaries(Part):
    """What the model knows of planted canaries."""

    planted: float
    """Number of planted canaries."""
    others: float
    """Number of canaries that were not planted."""
    exposure: float = metric("canaries.exposure")
    exposure_max: float
    """Largest possible exposure, bits."""
    p_remembered: Share = metric("canaries.p_remembered")
    p_overshot: Share = metric("canaries.p_overshot")


class Measures(Part):
    """Every metric of one model. For retrained models each number is the mean over them."""

    accuracy: Accuracy
    gap: Gap
    divergence: Divergences
    membership: Membership
    representation: Representation
    relearn: Relearn
    calibration: Calibration
    per_class: PerClass
    canaries: Canaries | None
    """Null where no canaries were planted."""
    intervals: dict[str, Interval]
    """90 % bootstrap intervals over rows, by the dotted path of the metric."""
    plugins: dict[str, float] = Field({}, description="Metrics of other packages, by name; absent without them.")
