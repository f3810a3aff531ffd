"""Conflicts of params.yaml with the dataset, the request, the methods, the model and the machine."""

from __future__ import annotations

from pathlib import Path

from expunge.checks.methods import method_problems, refusals
from expunge.checks.model import built, cut_problems
from expunge.checks.plugins import outdated
from expunge.checks.problem import Report
from expunge.checks.resources import cluster_problems, compiler_problems, needs, resource_problems
from expunge.checks.schema import Schema, request_of
from expunge.checks.times import last_times
from expunge.config import Config


def add_conflicts(report: Report, config: Config, dataset: Path) -> None:
    """Add to `report` what a run of `config` needs, and all conflicts that would end it."""
    schema, found = Schema.of(config, dataset)
    report.problems += found
    if schema.dataset is None:
        report.notes.append(
            f"classes, columns and files of the request were not checked, because {dataset} is not prepared yet"
        )
    request, found = request_of(config, schema)
    report.problems += found
    reported = {p.where for p in report.problems}
    report.problems += [p for p in method_problems(config, schema, request) if p.where not in reported]
    report.notes += refusals(config) + outdated(config)
    report.problems += compiler_problems(config) + cluster_problems(config)
    classifier, found = built(config, schema)
    report.problems += found
    if classifier is not None:
        splits, found = cut_problems(config, classifier)
        report.problems += found
        if config.activations.cuts == "auto":
            report.notes.append("activations.cuts: auto is resolved by the train stage; `expunge cuts` lists the cuts")
        if (need := needs(config, schema, classifier, splits)) is not None:
            report.problems += resource_problems(need)
            report.needs = need.to_json()
        else:
            report.notes.append("disk and memory were not estimated, because the number of rows is not known yet")
    report.seconds = last_times()
