"""`make demo`: the pipeline on digits, in a workspace of its own, so that params.yaml and dvc.lock stay as they are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from expunge.errors import ExpungeError
from expunge.progress import say
from expunge.workspace import lay_out, reproduce

PARAMS = "params.demo.yaml"
OUTPUTS = ("data/dataset", "data/split", "data/features", "data/evaluation", "models", "reports")


def run_demo(root: Path, keep: bool = False) -> None:
    """Run `dvc repro` on params.demo.yaml in `.expunge/demo` and leave its outputs in `root`, as `make run` does.

    Runs go to the same MLflow store as those of `make run`. Raises ExpungeError when a stage fails.
    """
    # Pictures of 8 x 8 gain nothing from a second thread, and lose much where another process computes too.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not (root / PARAMS).is_file():
        raise ExpungeError(f"{root / PARAMS}: no such file; run from the root of the repository")
    workspace = root / ".expunge" / "demo"
    if not keep:
        shutil.rmtree(workspace, ignore_errors=True)
    lay_out(root, workspace, (root / PARAMS).read_text(encoding="utf-8"))
    reproduce(root, workspace)
    for name in OUTPUTS:
        shutil.rmtree(root / name, ignore_errors=True)
        shutil.copytree(workspace / name, root / name)
    say(f"demo: outputs copied from {workspace.relative_to(root)}; params.yaml and dvc.lock are untouched")
