"""Write workspaces in which the real pipeline runs on digits, and run commands in them."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "NO_COLOR": "1",
    "DVC_NO_ANALYTICS": "1",
    "EXPUNGE_WARM": "0",
}
ENVIRONMENT.pop("MLFLOW_TRACKING_URI", None)


def lay_out(workspace: Path) -> Path:
    """Write dvc.yaml, code and inputs as in a clone, with params for a short training, and return the workspace."""
    (workspace / "data").mkdir(parents=True)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, workspace / name)
    for name in ("src", "flows", "data/source", "data/requests"):
        shutil.copytree(
            ROOT / name, workspace / name, ignore=shutil.ignore_patterns("__pycache__", "*.dvc", ".gitignore")
        )
    shutil.copy(ROOT / "params.demo.yaml", workspace / "params.yaml")

    def edit(params: dict) -> None:
        params["train"].update(epochs=3)
        params["methods"].append("relearn")
        params["activations"]["cuts"] = ["stage1", "stage2"]

    change(workspace, edit)
    dvc(workspace, "init", "--no-scm", "--quiet")
    return workspace


def lay_out_short(workspace: Path) -> Path:
    """Write a workspace as `lay_out` does, in which every kind of stage runs, and none longer than it must."""
    lay_out(workspace)

    def edit(params: dict) -> None:
        params["train"].update(epochs=1)
        params["methods"] = ["logit-mask", "loft"]
        params["retrain"]["seeds"] = [1]
        params["activations"]["cuts"] = ["stage1"]

    change(workspace, edit)
    return workspace


def change(workspace: Path, edit: Callable[[dict], object]) -> None:
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    edit(params)
    (workspace / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def dvc(workspace: Path, *arguments: str, ok: bool = True, env: Mapping[str, str] = ENVIRONMENT) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    result = subprocess.run(command, cwd=workspace, env=env, text=True, capture_output=True)
    assert not ok or result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


@contextmanager
def warm_stages() -> Iterator[dict[str, str]]:
    """Yield an environment in which stages fork from one process, as outside of tests. The process ends afterwards."""
    with tempfile.TemporaryDirectory(prefix="warm", dir="/tmp") as folder:
        try:
            yield {**ENVIRONMENT, "EXPUNGE_WARM": "1", "XDG_RUNTIME_DIR": folder}
        finally:
            for process in warm_servers(Path(folder)):
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def warm_servers(place: Path) -> list[psutil.Process]:
    """Return the processes that fork stages and whose socket is `place` or lies below it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(Path(argument).is_relative_to(place) for argument in process.cmdline()):
                found.append(process)
    return found


def stage(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"expunge.stages.{arguments[0]}", *arguments[1:]]
    return subprocess.run(command, cwd=workspace, env=ENVIRONMENT, text=True, capture_output=True)
