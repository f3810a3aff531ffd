"""Refuse to create stores in a folder that is no workspace."""

from __future__ import annotations

import os
from pathlib import Path

from expunge.system.errors import ExpungeError


def need_runs() -> None:
    """Raise ExpungeError if opening MLflow's store would create it in a folder that is no workspace."""
    need_workspace(Path("mlflow.db"), "MLFLOW_TRACKING_URI")


def need_workspace(store: Path, variable: str) -> None:
    """Raise ExpungeError if opening `store` would create it in a folder that is no workspace.

    `variable`: the environment variable that names a store elsewhere; if it is set, the folder does not matter.
    """
    if os.environ.get(variable) or store.is_file() or Path("params.yaml").is_file():
        return
    raise ExpungeError(
        f"{Path.cwd()}: no workspace (neither params.yaml nor {store} is here); run this from the root of a workspace, "
        f"make one with `expunge init`, or set {variable}"
    )
