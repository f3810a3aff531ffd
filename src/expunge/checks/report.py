"""Find all mistakes in params.yaml at once."""

from __future__ import annotations

from pathlib import Path

from expunge.checks.problem import Problem, Report
from expunge.config import PARAMS, read_config
from expunge.system.errors import ConfigError
from expunge.system.installed import LOCK, installed_version, other_version, read_lock
from expunge.system.paths import DATASET


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

    # This imports torch, which a report of wrong keys does not need.
    from expunge.checks.conflicts import add_conflicts

    add_conflicts(report, config, dataset)
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
