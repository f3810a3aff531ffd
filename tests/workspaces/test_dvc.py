"""Test the statements of docs/dvc.md on the finished pipeline in a git repository.

They are about tables, differences, experiments, a clone and a remote.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.pipeline import ENVIRONMENT, ROOT, dvc

WIDTH = 120
EXPERIMENT = "beta-2"
CHANGE = "fit.ru-linear.choose.beta=[2.0]"
FEW_COLUMNS = ("exp", "show", "--no-pager", "--only-changed", "--drop", ".*/")


def git(where: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=where, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def table(where: Path, *arguments: str) -> str:
    """Return what a DVC command prints, after asserting that no line exceeds 120 columns and no cell is shortened."""
    shown = dvc(where, *arguments)
    assert max(map(len, shown.splitlines())) <= WIDTH and "…" not in shown, shown
    return shown


@pytest.fixture(scope="module")
def repository(finished, tmp_path_factory):
    """Return a git repository with the finished workspace as its only commit, and with an experiment of DVC."""
    home = tmp_path_factory.mktemp("repository") / "work"
    shutil.copytree(finished, home, symlinks=True)
    shutil.copy(ROOT / ".gitignore", home / ".gitignore")
    (home / "log.txt").unlink(missing_ok=True)
    params = home / "params.yaml"
    params.write_text("# Mine.\n" + params.read_text())
    git(home, "init", "--quiet", "--initial-branch", "main")
    git(home, "config", "user.name", "a")
    git(home, "config", "user.email", "a@b.c")
    dvc(home, "config", "--unset", "core.no_scm")
    # `dvc init` writes this file in a git repository. The finished workspace was created outside of git.
    (home / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    dvc(home, "remote", "add", "--quiet", "--default", "storage", str(home.parent / "remote"))
    git(home, "add", ".")
    git(home, "commit", "--quiet", "--message", "a run")
    dvc(home, "exp", "run", "--temp", "--name", EXPERIMENT, "--set-param", CHANGE, "compare")
    return home


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "COLUMNS", str(WIDTH))


def metrics_of(home: Path) -> dict[str, dict[str, object]]:
    return {p.name: json.loads(p.read_text()) for p in (home / "reports/metrics").iterdir()}


@pytest.mark.slow
def test_an_experiment_in_a_folder_of_its_own_leaves_the_workspace_alone(repository, finished):
    assert git(repository, "status", "--porcelain") == ""
    assert (repository / "params.yaml").read_text() == "# Mine.\n" + (finished / "params.yaml").read_text()
    assert metrics_of(repository) == metrics_of(finished)
    shown = table(repository, *FEW_COLUMNS)
    assert re.search(r"Experiment +Created +.*fit\.ru-linear\.choose\.beta", shown)
    assert re.search(rf"main .*\['1', '0\.3', '3'\].*\n.*\[{EXPERIMENT}\] .*\['2'\]", shown)
    table(repository, *FEW_COLUMNS, "--keep", ".*/ru-linear.json:kl")


@pytest.mark.slow
def test_differences_name_what_changed(repository, tmp_path):
    report = json.loads(dvc(repository, "metrics", "diff", "HEAD", EXPERIMENT, "--json"))
    old = metrics_of(repository)["ru-linear.json"]
    assert {name for name in report if "metrics/" in name} == {"reports/metrics/ru-linear.json"}
    kl = report["reports/metrics/ru-linear.json"]["kl"]
    assert kl["old"] == old["kl"] != kl["new"]
    assert "reports/metrics/ru-linear.json" in table(repository, "metrics", "diff", "HEAD", EXPERIMENT)
    assert re.search(
        r"fit\.ru-linear\.choose\.beta +\[1\.0, 0\.3, 3\.0\] +\[2\.0\]",
        table(repository, "params", "diff", "HEAD", EXPERIMENT),
    )
    plots = json.loads(dvc(repository, "plots", "diff", "HEAD", EXPERIMENT, "--json", "--out", str(tmp_path)))["data"]
    (plot,) = plots["reports/plots/divergence.forget.kl.csv"]
    bars = {(r["model"], r["rev"]): float(r["value"]) for r in plot["content"]["data"]["values"]}
    assert bars["ru-linear", "HEAD"] == pytest.approx(kl["old"], rel=1e-5)
    assert bars["ru-linear", EXPERIMENT] == pytest.approx(kl["new"], rel=1e-5)
    assert bars["original", "HEAD"] == bars["original", EXPERIMENT]


@pytest.mark.slow
def test_a_clone_shows_results_and_pulls_the_rest(repository, tmp_path):
    """The experiment becomes a commit. The clone shows results from git alone, and then pulls from the remote."""
    repository = Path(shutil.copytree(repository, tmp_path / "work", symlinks=True))
    dvc(repository, "exp", "apply", EXPERIMENT)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", EXPERIMENT)
    dvc(repository, "push", "--quiet")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    assert not (clone / "models").exists() and not (clone / ".dvc/cache").exists()
    assert "reports/metrics/ru-linear.json" in table(clone, "metrics", "show")
    assert "reports/metrics/ru-linear.json" in table(clone, "metrics", "diff", "HEAD~1")
    page = dvc(clone, "plots", "show").strip().removeprefix("file://")
    assert Path(page).read_text().count("vegaEmbed(") == 8
    dvc(clone, "pull", "--quiet")
    for name in ("models/unlearned/ru-linear/manifest.json", "data/split/request.json", "reports/summary.json"):
        assert (clone / name).read_bytes() == (repository / name).read_bytes(), name
    assert git(clone, "status", "--porcelain") == ""
    git(repository, "tag", "--annotate", "--message", "first", "original@v1.0.0")
    dvc(tmp_path, "artifacts", "get", str(repository), "original")
    assert (tmp_path / "original/manifest.json").is_file()
