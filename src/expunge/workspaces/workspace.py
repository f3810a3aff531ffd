"""A workspace of its own below `.expunge`: the pipeline runs there, params.yaml and dvc.lock of the repository stay."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from expunge.system import dvc
from expunge.system.errors import ConfigError, ExpungeError

# What the graph reads: the stages run in the workspace, the code is found through these links.
LINKED = ("src", "flows")
COPIED = ("dvc.yaml", ".dvcignore")


def lay_out(root: Path, workspace: Path, params: str, cache: Path | None = None) -> None:
    """Fill `workspace` with the graph of `root` and `params` as params.yaml; what earlier runs made there stays.

    Workspaces with one `cache` share it, and what one of them made another takes from there instead of making it again.
    """
    (workspace / "data").mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copy(root / name, workspace / name)
    (workspace / "params.yaml").write_text(params, encoding="utf-8")
    for name in ("data/source", "data/requests"):
        shutil.copytree(root / name, workspace / name, dirs_exist_ok=True)
    for name in LINKED:
        if not (workspace / name).exists():
            (workspace / name).symlink_to(root / name)
    if not (workspace / ".dvc").exists():
        dvc.run("init", "--no-scm", "--quiet", root=workspace)
        if cache is not None:
            dvc.run("cache", "dir", str(cache.resolve()), root=workspace)


def params_with(file: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The params of `file` with `changes` over them, section by section. Raises ConfigError for a key it lacks."""
    try:
        params: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; run from the root of the repository") from None
    _change(params, changes, file.name)
    return params


def _change(params: dict[str, Any], changes: Mapping[str, Any], file: str) -> None:
    for key, value in changes.items():
        if key not in params:
            raise ConfigError(f"{file}: has no key {key}, which an experiment wants to change")
        if isinstance(value, Mapping) and params[key]:  # an empty section, as train.head, takes any key
            _change(params[key], value, file)
        else:
            params[key] = value


def reproduce(root: Path, workspace: Path, *targets: str) -> None:
    """`dvc repro` in the workspace; MLflow runs go to the store of `root`. Raises ExpungeError when a stage fails."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    if not dvc.reproduce(*targets, root=workspace, MLFLOW_TRACKING_URI=uri):
        raise ExpungeError(f"a stage failed, see above; its workspace is {workspace.relative_to(root)}")
