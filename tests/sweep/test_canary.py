"""Test that a sweep removes every trace of a person from all tools: DVC and its remote, git, MLflow and Prefect.

The person's pictures, ids and name hold a pattern that is recognised in any file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.pipeline import ENVIRONMENT, ROOT, change, dvc, lay_out
from tests.sweep.byte_search import found

pytestmark = pytest.mark.slow

# The pattern occurs in pixels and in text. The data are three classes of digits and one person, whose rows are a class
# of their own.
CANARY = re.compile(rb"CANARY[-=]")
PERSON, ROWS = "CANARY-subject-7f3a", 60


# This code registers a version of another request, from a model with its own files.
ANOTHER_VERSION = """
from pathlib import Path
from mlflow import MlflowClient
client = MlflowClient("sqlite:///mlflow.db")
version = client.search_model_versions()[0]
experiment = client.get_run(version.run_id).info.experiment_id
model = client.create_logged_model(experiment, name="older", source_run_id=version.run_id)
folder = Path(model.artifact_location.removeprefix("file://"))
folder.mkdir(parents=True)
(folder / "weights").write_text("remembers")
client.finalize_logged_model(model.model_id, "READY")
tags = {"request": "sha256:" + "0" * 64}
client.create_model_version(version.name, f"models:/{model.model_id}", version.run_id, tags, model_id=model.model_id)
"""


def picture(i: int) -> np.ndarray:
    """Return a picture whose 64 bytes hold readable text that differs between rows."""
    return np.frombuffer(f"CANARY={i:04d}=".encode().ljust(64, b"\xf0"), np.uint8).reshape(8, 8, 1)


def arrays() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits(n_class=3)
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    count = len(images)
    return {
        "images": np.concatenate([images, np.stack([picture(i) for i in range(ROWS)])]),
        "labels": np.concatenate([bunch.target, np.full(ROWS, 3)]),
        "ids": np.array([f"visit-{i:05d}" for i in range(count)] + [f"CANARY-row-{i:05d}" for i in range(ROWS)]),
        "subjects": np.array([f"guest-{i % 90:03d}" for i in range(count)] + [PERSON] * ROWS),
        "split": np.array(["test" if i % 5 == 4 else "train" for i in range(count + ROWS)]),
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("canary")


def command(home: Path, *arguments: str) -> str:
    """Run a command in the workspace and return its output. Every tool gets its own home directory below `home`."""
    environment = {
        **ENVIRONMENT,
        "PREFECT_HOME": str(home / "prefect"),
        "HOME": str(home / "home"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "GIT_CONFIG_GLOBAL": str(home / "gitconfig"),
    }
    done = subprocess.run(arguments, cwd=home / "workspace", env=environment, text=True, capture_output=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def python(home: Path, *arguments: str) -> str:
    return command(home, sys.executable, "-m", *arguments)


def stores(home: Path) -> list[Path]:
    """Return every folder that was written to: workspace, remote, home directories, and DVC's index elsewhere."""
    sites = re.findall(r"site_cache_dir: (.*)", python(home, "dvc", "doctor"))
    return [home / "workspace", home / "remote", home / "prefect", home / "home", *map(Path, sites)]


@pytest.fixture(scope="module")
def served(home) -> Path:
    """Return a workspace whose version is the champion, after the pipeline ran as a Prefect flow and data were pushed.

    An older state of the data was pushed and committed before. The registry also holds a version of another request.
    """
    (home / "home").mkdir()
    (home / "gitconfig").write_text("[user]\nname = Test\nemail = test@localhost\n")
    root = lay_out(home / "workspace")
    shutil.copy(ROOT / ".gitignore", root / ".gitignore")
    command(home, "git", "init", "-q")
    dvc(root, "config", "core.no_scm", "false")
    np.savez_compressed(root / "data/source/people.npz", **arrays())
    (root / "data/requests/first.txt").write_text(f"{PERSON}\n")
    python(home, "dvc", "remote", "add", "-d", "backup", str(home / "remote"))
    python(home, "dvc", "add", "-q", "data/source/people.npz", "data/requests/first.txt")

    def settings(params: dict) -> None:
        params["data"].update(source="npz", path="data/source/people.npz")
        params["train"].update(epochs=4)
        params["split"].update(selector="classes", classes=[1])
        # Only an exact deletion can be shown for the rows of one person, and only a version with a shown claim is
        # promoted.
        params["model"].update(name="efficientnet-lite0", training="head", saw_forget_data=False)
        params["methods"] = ["logit-mask", "exact"]
        params["activations"]["cuts"] = ["_blocks.10"]

    change(root, settings)
    command(home, "git", "add", "-A")
    command(home, "git", "commit", "-q", "-m", "inputs")
    python(home, "dvc", "repro", "-q", "split")
    python(home, "dvc", "push", "-q", "--run-cache")
    command(home, "git", "add", "dvc.lock")
    command(home, "git", "commit", "-q", "-m", "another request")
    change(root, lambda p: p["split"].update(selector="subjects", file="data/requests/first.txt"))
    python(home, "flows.unlearn")
    python(home, "dvc", "push", "-q", "--run-cache")
    command(home, "git", "commit", "-qam", "the request")
    python(home, "expunge.cli", "promote", "--reason", "asked for", "--yes")
    command(home, sys.executable, "-c", ANOTHER_VERSION)
    return root


@pytest.fixture(scope="module")
def swept(home, served) -> dict:
    """Return the files that held the pattern before the sweep, and the reports of a dry run and of the sweep."""
    before = found(CANARY, *stores(home))
    (home / "person.txt").write_text(f"{PERSON}\n")
    dry = python(home, "expunge.cli", "sweep", "--subjects", str(home / "person.txt"), "--json")
    assert found(CANARY, *stores(home)) == before
    report = python(home, "expunge.cli", "sweep", "--subjects", str(home / "person.txt"), "--json", "--apply")
    (home / "person.txt").unlink()
    return {"before": before, "dry": json.loads(dry), "said": json.loads(report)}


def test_the_search_finds_the_canary_where_it_must_be_before(swept):
    places = (
        "data/dataset/",
        "data/source/",
        "data/split/",
        "data/features/",
        "data/evaluation/",
        "data/requests/",
        ".dvc/cache/",
        "remote/files",
    )
    for place in places:
        assert any(place in name for name in swept["before"]), place


def test_nothing_leaks_into_git_mlflow_prefect_params_lock_or_docs(swept):
    for name in swept["before"]:
        assert not re.search(r"\.git |mlflow\.db|mlartifacts|prefect/|params\.yaml|dvc\.lock|data_docs|ledger", name), (
            name
        )


def test_not_a_byte_is_left_anywhere(home, swept):
    assert found(CANARY, *stores(home)) == set()
    assert swept["said"]["left"] == []


def test_what_could_not_be_purged_is_reported(swept):
    wheres = {entry["where"] for entry in swept["said"]["not_purgeable"]}
    assert wheres == {"git"}  # Commits still name the removed data.


def test_the_version_that_remembered_is_gone_with_its_model(home, swept):
    purged = {(entry["where"], entry["what"]): entry["count"] for entry in swept["said"]["purged"]}
    assert purged["MLflow expunge-npz-efficientnet-lite0", "superseded versions"] == 1
    assert purged["models/original", "model trained on erased rows"] == 1
    models = list((home / "workspace/mlartifacts/models").iterdir())
    assert len(models) == 1


def test_the_pipeline_is_up_to_date_and_reads_what_is_left(home, swept):
    root = home / "workspace"
    assert json.loads(python(home, "dvc", "status", "--json")) == {}
    assert "didn't change" in python(home, "dvc", "repro")
    lock = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    assert "train" in lock and "extract" in lock
    again = json.loads(python(home, "expunge.cli", "sweep", "--json"))
    assert again["found"] == [] and again["left"] == []


def test_the_next_request_starts_from_the_model_that_forgot(home, swept):
    """The champion becomes the original of later requests, and it does not predict the person's class any more."""
    code = (
        "import numpy as np; from expunge.models.checkpoint import load_classifier; import torch;"
        "from tests.sweep.test_canary import picture, ROWS;"
        "c = load_classifier('models/original').eval();"
        "x = np.stack([picture(i) for i in range(ROWS)]);"
        "print(int((c(x).argmax(1) == 3).sum()))"
    )
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=home / "workspace", env=environment, text=True, capture_output=True
    )
    assert done.stdout.strip() == "0", done.stdout + done.stderr


def test_an_old_commit_cannot_bring_the_rows_back(home, swept):
    root = home / "workspace"
    np.savez_compressed(root / "data/source/people.npz", **arrays())  # Somebody restores a backup of the input.
    done = subprocess.run(
        [sys.executable, "-m", "expunge.stages.prepare"], cwd=root, env=ENVIRONMENT, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert not found(CANARY, root / "data/dataset")
