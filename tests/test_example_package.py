"""The example package is installed as a user does it, passes its contract tests, and runs from prepare to register."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import mlflow
import pytest
import yaml

from tests.pipeline import ENVIRONMENT, ROOT, change, lay_out

pytestmark = pytest.mark.slow
EXAMPLE = ROOT / "examples/expunge-seven-segments"


def blocks(language: str) -> list[str]:
    """Return the blocks of docs/plugins.md in a language. Blocks of printed output have the language "text"."""
    page = (ROOT / "docs/plugins.md").read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [text for tag, text in found if tag == language]


def command(where: Path, site: Path, *arguments: str) -> str:
    path = os.pathsep.join([str(site), str(ROOT / "src")])
    environment = {**ENVIRONMENT, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=where, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Return the folder into which pip installed the package.

    It is built from a copy, so that nothing is written into the repository.
    """
    source, target = tmp_path_factory.mktemp("example") / "package", tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--target", str(target), str(source))
    command(source, target, "pip", "install", "--disable-pip-version-check", *options)
    return target


@pytest.fixture(scope="module")
def workspace(site, tmp_path_factory) -> Path:
    """Return a workspace in which the pipeline ran with one plug-in of each kind."""

    def edit(params: dict) -> None:
        for section, values in yaml.safe_load(blocks("yaml")[0]).items():  # These are the params of docs/plugins.md.
            params[section] = {**params[section], **values} if isinstance(values, dict) else values
        params["train"].update(epochs=10, batch_size=32)
        params["retrain"]["seeds"] = [1]

    place = lay_out(tmp_path_factory.mktemp("example-run") / "workspace")
    change(place, edit)
    command(place, site, "expunge.cli", "check")
    command(place, site, "dvc", "repro")
    return place


def test_the_example_package_keeps_the_contracts(site, tmp_path):
    tests = ("-n", "0", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'pytest'}", "-c", os.devnull)
    assert "4 passed" in command(tmp_path, site, "pytest", "--rootdir", str(tmp_path), *tests, str(EXAMPLE / "tests"))


def test_the_example_package_is_listed_and_loads(site, tmp_path):
    declared = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    listed = json.loads(command(tmp_path, site, "expunge.cli", "plugins", "--json"))
    assert [(p["kind"], p["name"], p["package"], p["problem"]) for p in listed] == [
        ("methods", "nearest-mean", "expunge-seven-segments 0.1.0", ""),
        ("readers", "seven-segments", "expunge-seven-segments 0.1.0", ""),
        ("models", "segment-net", "expunge-seven-segments 0.1.0", ""),
        ("metrics", "wrong-segments", "expunge-seven-segments 0.1.0", ""),
    ]
    printed = command(tmp_path, site, "expunge.cli", "plugins").splitlines()
    assert "\n".join(line.rstrip() for line in printed) + "\n" in blocks("text")
    assert tomllib.loads(blocks("toml")[0])["project"].items() <= declared["project"].items()


def test_a_run_records_the_package_and_shows_the_metric_beside_the_references(workspace):
    def read(name: str) -> dict:
        return json.loads((workspace / name).read_text())

    package = "expunge-seven-segments 0.1.0"
    assert read("data/dataset/manifest.json")["package"] == package
    assert read("models/original/model.json")["package"] == package
    assert read("models/unlearned/nearest-mean/fit.json")["package"] == package
    summary = read("reports/summary.json")
    assert summary["metrics"]["wrong-segments"]["package"] == package
    references, methods = summary["references"], summary["methods"]
    values = {
        n: b["plugins"]["wrong-segments"] for n, b in [*references.items(), *methods.items()] if n != "logit_mask"
    }
    # The original knows the digit. A model that never saw it answers with another digit.
    assert values["original"] < 0.5 < values["retrained"] <= 7
    assert values["logit-mask"] > 0.5
    table = (workspace / "reports/results.md").read_text()
    assert "| wrong-segments |" in table and f"{values['retrained']:.2f}" in table
    assert "expunge-seven-segments" in (workspace / "reports/report.html").read_text()
    client = mlflow.MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    logged = {r.info.run_name: r.data.metrics.get("plugins/wrong-segments") for r in runs}
    assert logged["original"] == pytest.approx(values["original"]) and logged["nearest-mean"] is not None


@pytest.mark.long
def test_after_an_upgrade_the_check_says_which_stage_to_make_again_and_the_line_works(workspace, site, tmp_path):
    """This test must run last, because it changes the workspace."""
    newer = tmp_path / "site"
    shutil.copytree(site, newer)
    info = next(newer.glob("expunge_seven_segments-0.1.0.dist-info"))
    metadata = (info / "METADATA").read_text().replace("Version: 0.1.0", "Version: 0.2.0")
    (info / "METADATA").write_text(metadata)
    info.rename(info.with_name("expunge_seven_segments-0.2.0.dist-info"))
    assert "up to date" in command(workspace, newer, "dvc", "status")
    output = command(workspace, newer, "expunge.cli", "check")
    line = "`dvc repro --force --single-item fit@nearest-mean`, then `dvc repro`"
    assert "fit@nearest-mean: made by expunge-seven-segments 0.1.0, but expunge-seven-segments 0.2.0 is" in output
    assert line in output and "evaluate-references evaluate@logit-mask evaluate@nearest-mean: made by" in output
    command(workspace, newer, "dvc", "repro", "--force", "--single-item", "fit@nearest-mean")
    result = json.loads((workspace / "models/unlearned/nearest-mean/fit.json").read_text())
    assert result["package"] == "expunge-seven-segments 0.2.0"
    assert "evaluate@nearest-mean" in command(workspace, newer, "dvc", "status")  # Later stages are stale.
    evaluations = ("evaluate-references", "evaluate@logit-mask", "evaluate@nearest-mean")
    command(workspace, newer, "dvc", "repro", "--force", "--single-item", *evaluations)
    output = command(workspace, newer, "expunge.cli", "check")
    left = [line.split(": ")[1] for line in output.splitlines() if ": made by expunge-seven-segments 0.1.0" in line]
    assert left == ["prepare", "train"]
