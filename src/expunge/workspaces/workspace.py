"""Separate workspaces below `.expunge`.

The pipeline runs there, and the repository's params.yaml and dvc.lock are not changed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from expunge.system import dvc
from expunge.system.errors import ConfigError, ExpungeError
from expunge.system.installed import read_lock
from expunge.workspaces.init.graph import graph, with_input
from expunge.workspaces.init.plan import lock_of
from expunge.workspaces.template import nearest, template

# Folders of code. Stages run in the workspace and find the code through links of these names.
LINKED = ("src", "flows")
INPUTS = ("data/source", "data/requests")


def lay_out(root: Path, workspace: Path, params: str, cache: Path | None = None) -> None:
    """Fill `workspace` with the graph of `root` and with `params` as params.yaml; results of earlier runs there stay.

    A `root` that is no workspace gets the graph of the installed version. Data and weights that `params` names are
    links, unless they are in `data/source`, which is copied. Workspaces with the same `cache` share results instead of
    computing them again.
    """
    (workspace / "data").mkdir(parents=True, exist_ok=True)
    named = yaml.safe_load(params)
    path, model = named["data"].get("path"), named["model"]
    own, lock = has_source(root), read_lock(root)
    ours = own or lock is not None  # otherwise dvc.yaml and data/ belong to another pipeline
    text = (root / "dvc.yaml").read_text(encoding="utf-8") if ours else graph(False)
    (workspace / "dvc.yaml").write_text(text if own else with_input(text, path is not None), encoding="utf-8")
    if not own:
        (lock or lock_of({})).write(workspace)
    shutil.copy(nearest(root, ".dvcignore") if ours else template(".dvcignore"), workspace / ".dvcignore")
    (workspace / "params.yaml").write_text(params, encoding="utf-8")
    for name in INPUTS:
        (workspace / name).mkdir(parents=True, exist_ok=True)
        if ours and (root / name).is_dir():
            shutil.copytree(root / name, workspace / name, dirs_exist_ok=True)
    for name in (path, model.get("checkpoint"), str(model.get("name")).partition(":")[2]):
        _link_input(root, workspace, name)
    for name in LINKED:
        if ours and (root / name).is_dir() and not (workspace / name).exists() and (own or name != "src"):
            (workspace / name).symlink_to(root / name)
    if not (workspace / ".dvc").exists():
        dvc.run("init", "--no-scm", "--quiet", root=workspace)
        if cache is not None:
            dvc.run("cache", "dir", str(cache.resolve()), root=workspace)


def has_source(root: Path) -> bool:
    """Whether `root` is the repository of this package, rather than a workspace that uses the installed package."""
    return (root / "src" / "expunge").is_dir()


def _link_input(root: Path, workspace: Path, path: str | None) -> None:
    if not path or Path(path).is_absolute() or (workspace / path).exists() or not (root / path).exists():
        return
    (workspace / path).parent.mkdir(parents=True, exist_ok=True)
    (workspace / path).symlink_to((root / path).resolve())


def params_with(file: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the params of `file` with `changes` applied, section by section.

    Raises ConfigError if `file` or one of the keys is missing.
    """
    try:
        params: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: no such file; run this from the root of a workspace, or make one with `expunge init`"
        ) from None
    _change(params, changes, file.name)
    return params


def _change(params: dict[str, Any], changes: Mapping[str, Any], file: str) -> None:
    for key, value in changes.items():
        if key not in params:
            raise ConfigError(f"{file}: has no key {key}, which is to be changed; check its spelling")
        if isinstance(value, Mapping) and params[key]:  # an empty section, such as train.head, takes any key
            _change(params[key], value, file)
        else:
            params[key] = value


def reproduce(root: Path, workspace: Path, *targets: str) -> None:
    """Run `dvc repro` in the workspace, with MLflow runs logged to the store of `root`.

    Raises ExpungeError if a stage fails.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    # `model.name: package.module:function` may name a module of the repository.
    importable = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(root)]).strip(os.pathsep)
    if not dvc.reproduce(*targets, root=workspace, MLFLOW_TRACKING_URI=uri, PYTHONPATH=importable):
        raise ExpungeError(f"a stage failed; see its error above. Its workspace is {workspace.relative_to(root)}")
