"""variant: the same pipeline with other params, in a workspace of its own; the run of params.yaml stays as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from expunge.system.errors import ConfigError
from expunge.system.progress import log_message
from expunge.workspaces.workspace import lay_out, params_with, reproduce

HOME = Path(".expunge/variants")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(variant)


def variant(
    name: Annotated[str, typer.Argument(help="Name of the workspace, .expunge/variants/NAME.")],
    change: Annotated[
        list[str], typer.Option("--set", "-S", help="Key that differs from params.yaml: model.name=efficientnet-lite0.")
    ],
    target: Annotated[str, typer.Option(help="Stage to stop after; extract writes the feature store.")] = "extract",
) -> None:
    """Run the pipeline with another backbone or other layers in its own workspace, beside the run of params.yaml."""
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ConfigError(
            f"{name!r}: not a name for a workspace; use letters, digits, '-', '_' and '.', and no '.' at the start"
        )
    root = Path.cwd()
    params = params_with(root / "params.yaml", changes(change))
    workspace = root / HOME / name
    lay_out(root, workspace, yaml.safe_dump(params, sort_keys=False), cache=root / ".dvc" / "cache")
    reproduce(root, workspace, target)
    log_message(f"variant: {target} of {name} is up to date in {HOME / name}")


def changes(given: list[str]) -> dict[str, Any]:
    """`["model.name=x", ...]` as nested sections, values as YAML reads them. Raises ConfigError for anything else."""
    found: dict[str, Any] = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {item!r}: expected SECTION.KEY=VALUE")
        *sections, last = key.split(".")
        at = found
        for section in sections:
            at = at.setdefault(section, {})
        try:
            at[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {item!r}: {value!r} is not a YAML value") from None
    return found
