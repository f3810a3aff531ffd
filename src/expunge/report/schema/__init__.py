"""The shape of reports/summary.json, schema 2: pydantic models, from which its JSON Schema is made.

A program that reads a summary may rely on every key here. Keys may be added without a new schema number, so a reader
must ignore keys that it does not know. Start with `Summary`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from expunge.report.schema.base import Part
from expunge.report.schema.models import Method, References
from expunge.report.schema.request import Model, Request
from expunge.report.schema.shadow import Shadow
from expunge.report.summary import SCHEMA


class PackageMetric(Part):
    """A metric of another package, as reports show it."""

    name: str
    """Its name in words."""
    form: str
    """How a value is printed."""
    target: str
    """What a good value is."""
    package: str
    """The package and its version."""


class Drawn(Part):
    """A part of the rows of which some were drawn and measured."""

    measured: int
    """How many were measured."""
    rows: int
    """How many rows the part has."""


class Summary(Part):
    """The result of a run. Accuracies and rates are fractions, divergences nats, times seconds."""

    schema_: Literal[2] = Field(alias="schema", description="Number of this schema.")
    request: Request
    model: Model
    shadow: Shadow
    references: References
    methods: dict[str, Method]
    """By the name of the entry in params.yaml."""
    selected: str | None
    """The method that is registered; null where none may serve."""
    metrics: dict[str, PackageMetric] = Field({}, description="Metrics of other packages; absent where there are none.")
    drawn: dict[str, Drawn] = Field({}, description="Parts of which not all rows were measured; absent without any.")
    refused: dict[str, str]
    """Methods that made no model, each with the reason."""


def summary_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of reports/summary.json."""
    schema = Summary.model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:expunge:summary:{SCHEMA}",
        **schema,
        "title": "reports/summary.json",
    }
