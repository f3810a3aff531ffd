"""dvc.yaml of a workspace without `src/`: stages depend on entries of `expunge.lock` instead of files of code."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from expunge.system.installed import LOCK
from expunge.workspaces.template import text_of

CODE = "src/expunge/"
INPUTS, INPUT = "data/source", "${data.path}"


def unit_of(dep: str) -> str:
    """Return the name of a dependency in `expunge.lock`: "stages.fit" for "src/expunge/stages/fit.py"."""
    return dep.removeprefix(CODE).removesuffix(".py").replace("/", ".")


def units(text: str) -> list[str]:
    """Return the modules and packages that any stage of the dvc.yaml `text` depends on, sorted."""
    stages = yaml.safe_load(text)["stages"].values()
    deps = {str(dep) for stage in stages for dep in stage["deps"] if str(dep).startswith(CODE)}
    return sorted(unit_of(dep) for dep in deps)


def stages_of(changed: Iterable[str]) -> list[str]:
    """Return the stages of this version's dvc.yaml that depend on one of these modules or packages."""
    stages, parts = yaml.safe_load(text_of("dvc.yaml"))["stages"], set(changed)
    return [
        name
        for name, stage in stages.items()
        if parts & {unit_of(str(dep)) for dep in stage["deps"] if str(dep).startswith(CODE)}
    ]


def graph(own_input: bool) -> str:
    """Return this version's dvc.yaml for a workspace. `own_input`: `prepare` depends on the path in `data.path`."""
    editor = YAML()
    editor.width = 4096
    editor.indent(mapping=2, sequence=4, offset=2)
    tree = editor.load(text_of("dvc.yaml"))
    for stage in tree["stages"].values():
        _on_the_lock(stage)
    out = io.StringIO()
    editor.dump(tree, out)
    return with_input(out.getvalue(), own_input)


def with_input(text: str, own_input: bool) -> str:
    """Return dvc.yaml with `prepare` depending on the path in params.yaml (`own_input`) or on the folder of inputs."""
    old, new = (INPUTS, INPUT) if own_input else (INPUT, INPUTS)
    return re.sub(rf"^( +- ){re.escape(old)}$", lambda found: found[1] + new, text, flags=re.MULTILINE)


def _on_the_lock(stage: CommentedMap) -> None:
    deps = stage["deps"]
    code = [str(dep) for dep in deps if str(dep).startswith(CODE)]
    for place in reversed([i for i, dep in enumerate(deps) if str(dep) in code]):
        del deps[place]
    names = CommentedSeq(f"code.{unit_of(dep)}" for dep in code)
    names.fa.set_flow_style()
    entry = CommentedMap({LOCK.as_posix(): names})
    params = CommentedSeq([*stage.get("params", []), entry])
    if "params" in stage:
        stage["params"] = params
    else:
        stage.insert(list(stage).index("deps") + 1, "params", params)


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
