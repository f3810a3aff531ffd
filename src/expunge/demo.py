"""`make demo`: the pipeline on digits, in a workspace of its own, so that params.yaml and dvc.lock stay as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from expunge.errors import ExpungeError
from expunge.progress import say

PARAMS = "params.demo.yaml"
# What the graph reads: the stages run in the workspace, the code is found through these links.
LINKED = ("src", "flows")
COPIED = ("dvc.yaml", ".dvcignore")
OUTPUTS = ("data/dataset", "data/split", "data/features", "data/evaluation", "models", "reports")


def run_demo(root: Path, keep: bool = False) -> None:
    """Run `dvc repro` on params.demo.yaml in `.expunge/demo` and leave its outputs in `root`, as `make run` does.

    Runs go to the same MLflow store as those of `make run`. Raises ExpungeError when a stage fails.
    """
    if not (root / PARAMS).is_file():
        raise ExpungeError(f"{root / PARAMS}: no such file; run from the root of the repository")
    workspace = root / ".expunge" / "demo"
    if not keep:
        shutil.rmtree(workspace, ignore_errors=True)
    _lay_out(root, workspace)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}"),
    }
    if subprocess.call([sys.executable, "-m", "dvc", "repro"], cwd=workspace, env=environment) != 0:
        raise ExpungeError(f"a stage of the demo failed, see above; its workspace is {workspace.relative_to(root)}")
    for name in OUTPUTS:
        shutil.rmtree(root / name, ignore_errors=True)
        shutil.copytree(workspace / name, root / name)
    say(f"demo: outputs copied from {workspace.relative_to(root)}; params.yaml and dvc.lock are untouched")


def _lay_out(root: Path, workspace: Path) -> None:
    (workspace / "data").mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copy(root / name, workspace / name)
    shutil.copy(root / PARAMS, workspace / "params.yaml")
    for name in ("data/source", "data/requests"):
        shutil.copytree(root / name, workspace / name, dirs_exist_ok=True)
    for name in LINKED:
        if not (workspace / name).exists():
            (workspace / name).symlink_to(root / name)
    if not (workspace / ".dvc").exists():
        subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=workspace, check=True)
