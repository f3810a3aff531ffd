"""dvc.yaml of a workspace without `src/`: the stage `code` depends on `expunge.lock` instead of files of code."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from expunge.system.installed import LOCK, stages
from expunge.workspaces.template import text_of

SOURCE = "src/expunge"
INPUTS, INPUT = "data/source", "${data.path}"
RUNS = re.compile(r"python -m expunge\.stages\.(\w+)")


def stages_of(changed: Iterable[str]) -> list[str]:
    """Return the stages of this version's dvc.yaml that import one of these modules or packages."""
    code, parts = stages(), set(changed)
    found = []
    for name, stage in yaml.safe_load(text_of("dvc.yaml"))["stages"].items():
        module = RUNS.match(stage["cmd"])
        if module and parts.intersection(code.get(module[1], ())):
            found.append(name)
    return found


def graph(own_input: bool) -> str:
    """Return this version's dvc.yaml for a workspace. `own_input`: `prepare` depends on the path in `data.path`.

    Its stage `code` depends on `expunge.lock`, because the workspace has no `src/`.
    """
    return with_input(_replaced(text_of("dvc.yaml"), SOURCE, LOCK.as_posix()), own_input)


def with_input(text: str, own_input: bool) -> str:
    """Return dvc.yaml with `prepare` depending on the path in params.yaml (`own_input`) or on the folder of inputs."""
    return _replaced(text, INPUTS, INPUT) if own_input else _replaced(text, INPUT, INPUTS)


def _replaced(text: str, old: str, new: str) -> str:
    return re.sub(rf"^( +- ){re.escape(old)}$", lambda found: found[1] + new, text, flags=re.MULTILINE)


def outputs(text: str, sections: Iterable[str] = ("outs", "metrics", "plots")) -> list[tuple[str, bool]]:
    """Return the outputs of dvc.yaml, sorted, and whether each is meant for git (`cache: false`).

    Outputs whose names contain a variable, as in a matrix, are represented by their folder.
    """
    found: dict[str, bool] = {}
    for stage in yaml.safe_load(text)["stages"].values():
        for kind in sections:
            for out in stage.get(kind, []):
                name, options = _named(out)
                place = name.split("${")[0].rpartition("/")[0] + "/" if "${" in name else name
                in_git = kind != "outs" and options.get("cache") is False
                found[place] = found.get(place, True) and in_git
    return sorted(found.items())


def _named(out: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(out, dict):
        name, options = next(iter(out.items()))
        return str(name), options or {}
    return str(out), {}
