"""`make demo`, `expunge demo-text` and `expunge demo-people`: small examples, each in its own workspace."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import yaml

from expunge.data.example_texts import fetch_example_texts
from expunge.data.readers.emoji import SHA256, archive
from expunge.system import dvc
from expunge.system.errors import ExpungeError
from expunge.system.paths import RAW
from expunge.system.progress import log_message
from expunge.workspaces.template import nearest
from expunge.workspaces.workspace import lay_out, params_with, reproduce

PARAMS, TEXT_PARAMS, PEOPLE_PARAMS = "params.demo.yaml", "params.text.yaml", "params.people.yaml"
TRAINED = ("train", "extract", "validate-features", "activations")  # stages that no request repeats


def run_demo(root: Path, keep: bool = False) -> Path:
    """Run `dvc repro` on params.demo.yaml in `.expunge/demo` and return this folder, which holds its outputs.

    The outputs of a run in `root` stay as they are. Runs are logged to the MLflow store of `root`. Raises ExpungeError
    if a stage fails.
    """
    # Images of 8 x 8 gain nothing from a second thread, and are much slower with it if another process computes too.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    workspace = _fresh(root / ".expunge" / "demo", keep)
    lay_out(root, workspace, nearest(root, PARAMS).read_text(encoding="utf-8"))
    return _reproduce(root, workspace)


def run_texts(root: Path, keep: bool = False) -> Path:
    """Run the demo on real texts with a sentence encoder, as `run_demo` does.

    The texts are fetched first. See params.text.yaml.
    """
    changes = yaml.safe_load(nearest(root, TEXT_PARAMS).read_text(encoding="utf-8"))
    workspace = _fresh(root / ".expunge" / "texts", keep)
    lay_out(root, workspace, yaml.safe_dump(params_with(nearest(root, PARAMS), changes), sort_keys=False))
    fetch_example_texts(workspace / "data" / "source" / "texts", root / RAW / "texts")
    return _reproduce(root, workspace)


def train_people(root: Path) -> tuple[Path, float]:
    """Fetch the emoji, create the workspace `.expunge/people` and train there.

    All results stay in it, including MLflow's store.

    Returns the workspace and the seconds of the pipeline, without fetching. Raises ExpungeError if a stage fails.
    """
    changes = yaml.safe_load(nearest(root, PEOPLE_PARAMS).read_text(encoding="utf-8"))
    workspace = _fresh(root / ".expunge" / "people", keep=False)
    lay_out(root, workspace, yaml.safe_dump(params_with(nearest(root, PARAMS), changes), sort_keys=False))
    fetched = [archive(vendor, None, root / RAW) for vendor in SHA256]
    (workspace / RAW / "emoji").mkdir(parents=True)
    for file in fetched:  # hard links: the sweep deletes the link, not the file in `root`
        os.link(file, workspace / RAW / "emoji" / file.name)
    began = time.perf_counter()
    if not dvc.reproduce(*TRAINED, root=workspace):
        raise ExpungeError(f"a stage failed; see its error above. Its workspace is {workspace.relative_to(root)}")
    return workspace, time.perf_counter() - began


def _fresh(workspace: Path, keep: bool) -> Path:
    if not keep:
        shutil.rmtree(workspace, ignore_errors=True)
    return workspace


def _reproduce(root: Path, workspace: Path) -> Path:
    reproduce(root, workspace)
    log_message(f"{workspace.name}: its outputs are in {workspace.relative_to(root)}")
    return workspace
