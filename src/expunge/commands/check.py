"""check: what is wrong with params.yaml, all of it, before a stage runs and before DVC removes an output."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from expunge.checks.report import check
from expunge.system.cut_off import set_aside
from expunge.system.preflight import remember


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("check")(check_params)


def check_params(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON. The exit status is the same.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing if nothing is wrong.")] = False,
) -> None:
    """Find every conflict in params.yaml, the data's schema and the model, without running a stage.

    Prints one conflict per line, and exits with status 2 if there are any. Run it before `dvc repro`, which removes the
    outputs of a stage before the stage can refuse its params.
    A dvc.lock that a killed process left cut off is set aside, so that DVC can go on.
    """
    if sentence := set_aside():
        typer.echo(sentence, err=quiet or as_json)
    report = check()
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        for problem in report.problems:
            typer.echo(str(problem), err=quiet)
        if not quiet:
            for line in [*(f"note: {n}" for n in report.notes), *_summary(report.needs, report.seconds)]:
                typer.echo(line)
    if report.problems:
        if not as_json and not quiet:
            number = len(report.problems)
            typer.echo(f"params.yaml: {number} conflict{'s' * (number != 1)}; no stage was run")
        raise typer.Exit(2)
    remember()
    if not as_json and not quiet:
        typer.echo("params.yaml: nothing wrong")


def _summary(needs: dict[str, object] | None, seconds: dict[str, float]) -> list[str]:
    lines = []
    if needs is not None:
        disk = needs["disk_gb"]
        assert isinstance(disk, dict)
        parts = ", ".join(f"{k} {v:g}" for k, v in disk.items())
        lines.append(f"disk: about {sum(disk.values()):.2f} GB ({parts}); memory: about {needs['memory_gb']} GB")
    if seconds:
        longest = sorted(seconds.items(), key=lambda item: -item[1])[:8]
        parts = ", ".join(f"{name} {s:.0f}" for name, s in longest)
        lines.append(f"seconds of the last run: {sum(seconds.values()):.0f} in all ({parts})")
    return lines
