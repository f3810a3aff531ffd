"""Find all mistakes in params.yaml at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.checks.problem import Problem
from expunge.config import PARAMS, read_config
from expunge.system.errors import ConfigError
from expunge.system.installed import LOCK, installed_version, other_version, read_lock
from expunge.system.paths import DATASET


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


def check(params: Path = PARAMS, dataset: Path = DATASET) -> Report:
    """Read params, data schema and model once and return every conflict. Writes nothing and runs no stage."""
    report = Report()
    _version(report, params.parent)
    try:
        config, keys = read_config(params)
    except ConfigError as e:
        report.problems.append(Problem(str(params), str(e).removeprefix(f"{params}: ")))
        return report
    report.problems += [_of_line(params, line) for line in keys]
    if config is None:
        report.notes.append("request, methods, model and resources were not checked, because some keys are wrong")
        return report

    # Imported here because these import torch, which a report of wrong keys does not need.
    from expunge.checks.methods import method_problems, refusals
    from expunge.checks.model import built, cut_problems
    from expunge.checks.plugins import outdated
    from expunge.checks.resources import needs, resource_problems
    from expunge.checks.schema import Schema, request_of
    from expunge.checks.times import last_times

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
    return report


def _version(report: Report, root: Path) -> None:
    """Report whether the workspace was made for another version than the installed one.

    Workspaces with `src/` have their own code and no lock.
    """
    try:
        lock, problem = read_lock(root), other_version(root)
    except ConfigError as e:
        report.problems.append(Problem.from_error(str(LOCK), e))
        return
    if problem:
        report.problems.append(Problem.from_error(str(LOCK), problem.removeprefix(f"{LOCK} ")))
    elif lock is not None and lock.version != installed_version():
        report.notes.append(
            f"{LOCK} is of version {lock.version}, and version {installed_version()} is installed. The code of the "
            "stages is the same; run `expunge init --upgrade` to get the new flows and keys"
        )


def _of_line(params: Path, line: str) -> Problem:
    """Split a line of `read_config` into a problem.

    Examples of lines are `unknown key x; did you mean y?`, `train.epochs is 0; it must be ...` and
    `methods names 'x', but ...`.
    """
    what, _, way_out = line.partition("; ")
    first, _, rest = what.partition(" ")
    if first in ("unknown", "missing", "key"):
        return Problem(str(params), what, way_out)
    return Problem(first, rest, way_out)
