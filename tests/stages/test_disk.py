"""Stages in a workspace that is read only, and on a disk that is full.

One line says what to do, nothing is half written, and the next run makes the same bytes.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from expunge.stages import run
from tests import mounts
from tests.pipeline import ENVIRONMENT
from tests.system.test_storage import contents, left_behind

KEPT, PAGE = ["data", "models", "reports"], 4096
TIMES = (
    "reports/cost/",
    "models/unlearned/loft/",
    "models/unlearned/logit-mask/",
)  # files that contain times, and the digests of these files


@pytest.mark.slow
def test_a_stage_in_a_read_only_workspace(finished, tmp_path):
    """Also for root, whom permissions do not stop."""

    def work() -> None:
        workspace = copied(finished, tmp_path / "workspace")
        whole = contents(workspace, ["data", "models", "reports"])
        for name in ("prepare", "extract", "split", "fit@loft", "compare", "register"):
            mounts.read_only(workspace)
            status, said = stage(workspace, name, tmp_path)
            mounts.read_only(workspace, False)
            refused(status, said, workspace, "the file system is read only; mount it for writing and run again")
            assert contents(workspace, ["data", "models", "reports"]) == whole
            assert stage(workspace, name, tmp_path)[0] == 0
            same(contents(workspace, outputs(workspace, name)), contents(finished, outputs(finished, name)))
            shutil.copytree(finished / "reports", workspace / "reports", dirs_exist_ok=True)
            shutil.copytree(finished / TIMES[1], workspace / TIMES[1], dirs_exist_ok=True)
            whole = contents(workspace, ["data", "models", "reports"])

    mounts.in_a_namespace(work)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_stage_on_a_full_disk(short, tmp_path):
    """Each stage has too little space twice: no free page, and a drawn part of the space of its outputs."""
    names = list(yaml.safe_load((short / "dvc.lock").read_text())["stages"])
    mounts.in_a_namespace(lambda: on_a_full_disk(short, names, tmp_path))


def on_a_full_disk(short: Path, names: list[str], logs: Path) -> None:
    """Run the stages `names` of a copy of the finished workspace on a disk that is full, and then on one that is not.

    It must run in a namespace of its own (`mounts.in_a_namespace`).
    """
    place, rng = logs / "disk", np.random.default_rng(0)
    place.mkdir()
    mounts.small_disk(place, 256 << 20)
    workspace = copied(short, place / "workspace")
    for name in names:
        wanted = contents(short, outputs(short, name))
        before = contents(workspace, KEPT)
        for pages in (0, int(rng.integers(1, max(2, sum(map(len, wanted.values())) // PAGE)))):
            filler = mounts.fill(place, pages * PAGE)
            status, said = stage(workspace, name, logs)
            filler.unlink()
            if status == 0 and pages:  # It replaces one file after another, for which the space sufficed.
                continue
            refused(status, said, workspace, "the disk is full; free some space and run again")
            same(contents(workspace, KEPT), before)
            assert not left_behind(workspace), name
        status, said = stage(workspace, name, logs)
        assert status == 0, said
        same(contents(workspace, outputs(workspace, name)), wanted)
        # The next stages begin with the outputs of the undisturbed run, because some outputs contain times.
        for out in outputs(short, name):
            put_back(short / out, workspace / out)


def put_back(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


def copied(source: Path, target: Path) -> Path:
    """All but the code and DVC's cache."""
    return Path(shutil.copytree(source, target, ignore=shutil.ignore_patterns("src", "flows", ".dvc")))


def entry(workspace: Path, name: str) -> dict:
    return yaml.safe_load((workspace / "dvc.lock").read_text())["stages"][name]


def outputs(workspace: Path, name: str) -> list[str]:
    """Return the paths of what a stage writes."""
    return [o["path"] for o in entry(workspace, name)["outs"]]


def stage(workspace: Path, name: str, logs: Path, first: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """Run a stage in a process of its own, which need not import the libraries again; its status and what it said.

    The process calls `first` before the stage begins.
    """
    module, *arguments = entry(workspace, name)["cmd"].split()[2:]
    main = importlib.import_module(module).main
    child = os.fork()
    if child == 0:
        os.environ.update(ENVIRONMENT)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        os.chdir(workspace)
        with (logs / "said").open("w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = [module, *arguments]
        status = 1
        try:
            first()
            run(main)
            status = 0
        except SystemExit as e:
            status = int(e.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), (logs / "said").read_text()


def refused(status: int, said: str, workspace: Path, way_out: str) -> None:
    """One line with a path in the workspace and the way out; lines of progress may come before it."""
    path = rf"({workspace}|data/|models/|reports/|\.expunge/|\S*mlflow|\S*mlartifacts)"
    lines = said.strip().splitlines()
    assert status == 2 and [line for line in lines if line.startswith("error: ")] == lines[-1:], said
    assert "Traceback" not in said and way_out in lines[-1], said
    assert re.match(f"error: {path}", lines[-1]), said


def same(made: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    assert made.keys() == wanted.keys()
    assert not [n for n in wanted if made[n] != wanted[n] and not n.startswith(TIMES)]
