"""What was asked for, and of which model."""

from __future__ import annotations

from expunge.report.schema.base import Count, Digest, Part, Share


class NearDuplicates(Part):
    """Retained rows whose features lie near those of a forgotten row."""

    distance: float | None
    """Largest distance that counts as near; null where near duplicates were not looked for."""
    left_in_retain: Count | None
    """How many stayed among the retained rows; null where they were not looked for."""
    included: Count
    """How many were added to the forgotten rows."""


class Validation(Part):
    """Training rows that are held out to choose settings by. No metric counts them."""

    share: Share
    """Share of the retained and of the forgotten training rows."""
    seed: Count
    """Seed of the draw."""


class Request(Part):
    """The erasure request. It holds no id of a row or a person."""

    selector: str
    """How the rows were selected: `split.selector` of params.yaml."""
    forget_rows: Count
    """Number of forgotten training rows."""
    retain_rows: Count
    """Number of retained training rows."""
    digest: Digest
    """Keyed digest of the sorted ids of the forgotten rows."""
    classes: list[Count]
    """Indices of the classes of the forgotten rows."""
    whole_classes: list[Count]
    """Indices of the classes whose training rows are all forgotten."""
    duplicates_left_in_retain: Count
    """Exact duplicates of forgotten rows that stayed among the retained rows."""
    duplicates_included: Count
    """Exact duplicates that were added to the forgotten rows."""
    near_duplicates: NearDuplicates
    validation: Validation


class Model(Part):
    """The original classifier."""

    name: str
    """`model.name` of params.yaml."""
    feature_dim: Count
    """Number of features that the head reads."""
    saw_forget_data: bool
    """Whether a part of the network below the head was trained on forgotten rows."""
    public_up_to: str | None
    """The last module with public weights, for `model.training: above`; else null."""
    digest: Digest
    """sha256 of the weights."""
