"""Test `expunge init` in a user's repository: what it writes, what it leaves unchanged, and how it upgrades."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from expunge.cli import app
from expunge.system.errors import ConfigError, DataError
from expunge.system.installed import LOCK, Lock, other_version, read_lock
from expunge.workspaces.init import plan
from tests import killing
from tests.pipeline import ENVIRONMENT, ROOT, dvc, stage

DIGITS = ("--example", "digits")


def init(*arguments: str) -> str:
    """Run `expunge init` and return its output. Exceptions other than SystemExit are raised again."""
    done = CliRunner().invoke(app, ["init", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], text=True, capture_output=True, check=True).stdout


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    return tmp_path


def everything(root: Path) -> dict[str, bytes]:
    files = (p for p in root.rglob("*") if p.is_file() and ".git" not in p.parts and ".dvc/tmp" not in p.as_posix())
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def images(root: Path, *classes: str) -> None:
    for name in classes:
        (root / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (1, 1)).save(root / "images" / name / f"{i}.png")


@pytest.mark.slow
def test_an_example_is_a_workspace_that_dvc_and_check_understand(repository):
    (repository / ".gitignore").write_text("*.bak")
    assert "Next, run `expunge check`" in init(*DIGITS)
    wanted = subprocess.run(["git", "ls-files", "flows"], cwd=ROOT, text=True, capture_output=True).stdout.split()
    for name in (*wanted, "prefect.yaml", "data/requests/README.md"):
        assert (repository / name).read_bytes() == (ROOT / name).read_bytes(), name
    params, demo = (yaml.safe_load(p.read_text()) for p in (repository / "params.yaml", ROOT / "params.demo.yaml"))
    assert params == demo
    stages = dvc(repository, "stage", "list", "--name-only").split()
    assert {s.partition("@")[0] for s in stages} == set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    assert {f"fit@{method}" for method in demo["methods"]} <= set(stages)
    ignored = (repository / ".gitignore").read_text()
    assert ignored.startswith("*.bak\n\n# expunge\n") and ignored.count("/data/dataset\n") == 1
    assert "params.yaml: nothing wrong" in CliRunner().invoke(app, ["check"]).output
    # Every file of the workspace can be committed.
    git("add", ".")
    names = git("ls-files").split()
    assert {"dvc.yaml", "expunge.lock", "flows/unlearn.py", ".github/workflows/expunge.yml"} <= set(names)
    with pytest.raises(ConfigError, match="a workspace already"):
        init(*DIGITS)


@pytest.mark.slow
def test_images_come_under_dvc_and_out_of_git(repository):
    images(repository, "bag", "Coat")
    (repository / "w.safetensors").write_bytes(b"weights")
    model = ("--model", "timm:resnet18", "--image-size", "32", "--weights", "w.safetensors", "--training", "full")
    output = init("--data", "images", *model, "--classes", "coat")
    assert "images: tracked by DVC now" in output and "w.safetensors: tracked by DVC now" in output
    params = yaml.safe_load((repository / "params.yaml").read_text())
    assert (params["data"]["path"], params["split"]["classes"], params["activations"]["cuts"]) == (
        "images", ["Coat"], "auto",
    )  # fmt: skip
    git("add", ".")
    assert {"images.dvc", "w.safetensors.dvc"} <= set(git("ls-files").split())
    assert "images/" not in git("ls-files") and "w.safetensors\n" not in git("ls-files")
    shown = yaml.safe_load((repository / "dvc.yaml").read_text())["stages"]["prepare"]["deps"]
    assert shown == ["${data.path}"] and not (repository / "data/source").exists()
    assert "prepare" in dvc(repository, "status")


@pytest.mark.slow
def test_all_conflicts_are_reported_together_and_nothing_is_written(repository):
    for name in ("dvc.yaml", "flows/__init__.py", "models/original/weights.bin", "reports/results.md"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("mine\n")
    # This file has the content that `init` would write, so it is no conflict.
    (repository / "prefect.yaml").write_bytes((ROOT / "prefect.yaml").read_bytes())
    (repository / "models/mine.py").write_text("")
    before = everything(repository)
    with pytest.raises(ConfigError) as refusal:
        init(*DIGITS)
    words = str(refusal.value)
    for name in ("dvc.yaml", "flows/__init__.py", "models/original", "reports/results.md"):
        assert f"  {name}: exists already" in words
    assert "prefect.yaml:" not in words and "models/mine" not in words and "mkdir forget" in words
    assert everything(repository) == before
    with pytest.raises(ConfigError) as refusal:
        init(*DIGITS, "--without", "flows")
    assert "flows/__init__.py:" not in str(refusal.value)
    # The error suggests a folder of its own, which must work.
    (repository / "forget").mkdir()
    os.chdir(repository / "forget")
    init(*DIGITS)
    workflow = (repository / ".github/workflows/expunge.yml").read_text()
    assert "working-directory: forget" in workflow and "path: |\n            forget/dvc.lock" in workflow
    assert "prepare" in dvc(repository / "forget", "stage", "list", "--name-only")
    assert {k: v for k, v in everything(repository).items() if k in before} == before


def test_an_interrupted_init_can_be_run_again(repository, monkeypatch):
    def killed(*_: object) -> None:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(Lock, "write", killed)
        with pytest.raises(OSError):
            init(*DIGITS)
        assert not (repository / LOCK).exists() and (repository / "dvc.yaml").exists()
    init(*DIGITS)
    assert (repository / LOCK).is_file() and (repository / ".gitignore").read_text().count("# expunge\n") == 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[dict[str, bytes], int]:
    """Return the files that an undisturbed `expunge init` writes, and the number of its requests to the file system."""
    root = tmp_path_factory.mktemp("undisturbed") / "repository"
    status, requests = init_in_a_child(root, 0)
    assert status == 0 and requests > 20
    return everything(root), requests


def init_in_a_child(root: Path, until: int) -> tuple[int, int]:
    """Run `expunge init` in a child process that is killed at its `until`-th request (0: never)."""
    root.mkdir(exist_ok=True)

    def work() -> None:
        os.chdir(root)
        git("init", "--quiet")
        assert "Next, run" in init(*DIGITS)

    return killing.in_a_child(work, until, lambda _, path: os.path.abspath(path).startswith(str(root)))


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_an_init_that_is_killed_at_any_moment_can_be_run_again(seed, undisturbed, tmp_path):
    wanted, requests = undisturbed
    root = tmp_path / "repository"
    status, _ = init_in_a_child(root, int(np.random.default_rng(seed).integers(1, requests + 1)))
    assert os.WIFSIGNALED(status) and not (root / LOCK).is_file()
    assert init_in_a_child(root, 0)[0] == 0
    assert everything(root) == wanted


def test_git_takes_no_cache_after_a_killed_dvc_init(repository):
    """DVC was killed after it had made its folder."""
    (repository / ".dvc").mkdir()
    (repository / ".dvc/config").touch()
    init(*DIGITS)
    (repository / ".dvc/cache/files/md5").mkdir(parents=True)
    (repository / ".dvc/cache/files/md5/somebody").write_text("x")
    git("add", ".")
    assert ".dvc/config" in git("ls-files") and "cache" not in git("ls-files")


def test_an_example_has_the_methods_and_the_name_that_are_given(repository):
    init(*DIGITS, "--methods", "unsir,damp", "--name", "mine", "-S", "register.experiment=tries")
    params = yaml.safe_load((repository / "params.yaml").read_text())
    assert params["methods"] == ["logit-mask", "unsir", "damp"]
    assert params["register"]["name"] == "mine" and params["register"]["experiment"] == "tries"


def test_dry_run_writes_nothing(repository):
    assert "would write:" in init(*DIGITS, "--dry-run")
    assert everything(repository) == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--data, --model, what to forget"),
        (["--data", "digits", "--model", "resnet-small"], "what to forget"),
        ([*DIGITS, "--classes", "3"], "--classes: --example brings its own"),
        ([*DIGITS, "--image-size", "32", "--source", "npz"], "--source, --image-size: --example brings its own"),
        (["--example", "cats"], "choose one of digits"),
        (["--data", "digits", "--model", "m", "--classes", "1", "--random", "0.1"], "--classes and --random"),
        (["--data", "digits", "--model", "m", "--training", "x", "--classes", "1"], "must be full, head"),
        (["--data", "digits", "--model", "m", "--ids", "rows.txt"], "no such file"),
        (["--data", "digits", "--model", "m", "--classes", "1", "--weights", "../w.pt"], "no such file below"),
        (["--data", "digits", "--model", "m", "--ids", "there.txt"], r"must lie in data/requests"),
        (["--data", "digits", "--model", "m", "--classes", "1", "-S", "data.test_fraction=2"], "test_fraction"),
        ([*DIGITS, "-S", "train.epoch=3"], "train.epoch"),
        ([*DIGITS, "--without", "docs"], "flows or ci"),
        ([*DIGITS, "--take", "dvc.yaml"], "--upgrade"),
        (["--upgrade"], "run it first"),
    ],
)  # fmt: skip
def test_mistakes_are_reported_before_anything_is_written(repository, arguments, words):
    (repository / "there.txt").write_text("7\n")
    with pytest.raises(ConfigError, match=words):
        init(*arguments)
    assert set(everything(repository)) == {"there.txt"}


def test_a_file_that_the_pipeline_would_refuse_is_named_before_anything_is_written(repository):
    images(repository, "bag", "coat")
    (repository / "images/.hidden").write_bytes(b"")
    (repository / "images/coat/Thumbs.db").write_bytes(b"x")
    before = everything(repository)
    with pytest.raises(DataError, match=r"images/coat/Thumbs\.db: is not an image .*move it out"):
        init("--data", "images", "--model", "resnet-small", "--classes", "coat")
    assert everything(repository) == before


@pytest.mark.parametrize(
    ("mode", "size", "words"), [("L", (8, 8), "8 x 8 pixels in grey"), ("RGB", (9, 8), "9 x 8 pix")]
)
def test_pictures_of_two_shapes_are_refused_only_where_all_weights_are_trained(repository, mode, size, words):
    (repository / "images/bag").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (8, 8)).save(repository / f"images/bag/{i}.png")
    Image.new(mode, size).save(repository / "images/bag/9.png")
    before = everything(repository)
    arguments = ("--data", "images", "--model", "efficientnet-lite0", "--random", "0.3", "--dry-run")
    with pytest.raises(DataError, match=rf"bag/9\.png: is {words}.*, but .*bag/0\.png is 8 x 8 pixels in colour"):
        init(*arguments)
    assert "would write:" in init(*arguments, "--training", "head")
    assert everything(repository) == before


def test_init_outside_of_git_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ConfigError, match="git init"):
        init(*DIGITS)
    (tmp_path / ".git").write_text("nonsense")
    with pytest.raises(ConfigError, match="git refuses this folder: fatal: invalid gitfile"):
        init(*DIGITS)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="git is not installed"):
        init(*DIGITS)


@pytest.mark.slow
def test_rows_by_id_are_given_to_dvc(repository):
    (repository / "data/requests").mkdir(parents=True)
    (repository / "data/requests/asked.txt").write_text("digits-7\n")
    init("--data", "digits", "--model", "resnet-small", "--ids", "data/requests/asked.txt", "--without", "ci")
    git("add", ".")
    names = git("ls-files").split()
    assert "data/requests/asked.txt.dvc" in names and "data/requests/asked.txt" not in names
    assert not (repository / ".github").exists()
    assert "nothing to upgrade" in init("--upgrade")


@pytest.mark.slow
def test_init_asks_at_a_terminal(repository):
    images(repository, "bag", "coat")
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "expunge", "init", "--model", "resnet-small"]
    process = subprocess.Popen(
        command, stdin=follower, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    os.write(leader, b"images\n\nbag, coat\n32\n")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert [output.count(word) for word in ("Data:", "Model (", "Training", "Classes to", "Side of")] == [1, 0, 1, 1, 1]
    params = yaml.safe_load((repository / "params.yaml").read_text())
    assert (params["model"]["training"], params["split"]["classes"]) == ("full", ["bag", "coat"])
    assert params["model"]["image_size"] == 32


@pytest.mark.slow
def test_the_workflow_follows_the_schema_of_github(repository):
    init(*DIGITS)
    checker = Path(sys.executable).parent / "check-jsonschema"
    command = [str(checker), "--builtin-schema", "vendor.github-workflows", ".github/workflows/expunge.yml"]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout
    text = (repository / ".github/workflows/expunge.yml").read_text()
    assert not any(word in text for word in ("WORKSPACE", "TORCH", "VERSION"))
    pinned = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if '"torch==' in line)
    assert text.count(f"torch=={pinned.split('==')[1].split(chr(34))[0]} ") == 2


@pytest.mark.slow
def test_another_build_is_refused_by_stages_and_explained_by_check(repository):
    init(*DIGITS)
    assert other_version() is None
    lock = read_lock()
    Lock("0.0.9", {**lock.code, "data": "0" * 32, "gone": "0" * 32}, lock.files).write(repository)
    output = CliRunner().invoke(app, ["check"])
    assert output.exit_code == 2
    assert (
        "expunge.lock: is of version 0.0.9, and version" in output.output
        and "other code in data, gone" in output.output
    )
    refused = stage(repository, "prepare")
    assert refused.returncode == 2 and "expunge init --upgrade" in refused.stderr
    assert not (repository / "data/dataset").exists()
    output = init("--upgrade", "--yes")
    assert "version 0.0.9 -> " in output and "changed code in: data, gone" in output
    assert "run again if they ran before: prepare, validate-dataset, train" in output and "to go back" not in output
    assert read_lock() == lock and other_version() is None
    Lock("0.0.9", lock.code, lock.files).write(repository)
    output = CliRunner().invoke(app, ["check"])
    assert output.exit_code == 0 and "note: expunge.lock is of version 0.0.9" in output.output


@pytest.fixture
def newer(repository, monkeypatch):
    """Return a workspace that a newer version of the package can upgrade.

    In the newer version, one flow has another line, one is removed and one is new; params.yaml has a new key.
    """
    init(*DIGITS)
    own = (repository / "params.yaml").read_text().replace("  epochs: 8", "  epochs: 9 # mine")
    (repository / "params.yaml").write_text(
        own.replace("  near_duplicates: warn", "  # no such key then: near_duplicates")
    )
    before = plan.managed

    def after(*arguments: object) -> dict[str, str]:
        files = before(*arguments)
        del files["flows/audit.py"]
        return {**files, "flows/nightly.py": files["flows/nightly.py"] + "NEW = 1\n", "flows/added.py": "ADDED = 1\n"}

    monkeypatch.setattr("expunge.workspaces.init.upgrade.managed", after)
    return repository


def test_an_upgrade_shows_the_difference_and_keeps_values(newer):
    before = everything(newer)
    with pytest.raises(ConfigError, match="again with --yes"):
        init("--upgrade")
    output = init("--upgrade", "--dry-run")
    assert everything(newer) == before
    for line in ("+NEW = 1", "+ADDED = 1", "+++ /dev/null", "--- a/flows/audit.py", "+  near_duplicates: warn"):
        assert f"\n{line}" in output, line
    assert "your values are kept; new keys: split.near_duplicates" in output
    init("--upgrade", "--yes")
    params = yaml.safe_load((newer / "params.yaml").read_text())
    assert (params["train"]["epochs"], params["split"]["near_duplicates"]) == (9, "warn")
    assert "# mine" in (newer / "params.yaml").read_text()
    assert not (newer / "flows/audit.py").exists() and (newer / "flows/added.py").is_file()
    changed = {name for name, content in everything(newer).items() if before.get(name) != content}
    assert changed == {"flows/nightly.py", "flows/added.py", "params.yaml", "expunge.lock"}
    assert "nothing to upgrade" in init("--upgrade")


@pytest.mark.slow
def test_a_file_that_both_sides_changed_is_left_to_its_owner(newer):
    for name in ("flows/nightly.py", "dvc.yaml"):
        (newer / name).write_text((newer / name).read_text() + "# mine\n")
    (newer / "prefect.yaml").unlink()
    before = everything(newer)
    with pytest.raises(ConfigError, match=r"both you and the new version changed these files:\n  flows/nightly\.py\n"):
        init("--upgrade", "--yes")
    with pytest.raises(ConfigError, match=r"flows/nigthly\.py: not a file that"):
        init("--upgrade", "--yes", "--keep", "flows/nigthly.py")
    assert everything(newer) == before
    output = init("--upgrade", "--yes", "--keep", "flows/nightly.py")
    assert "dvc.yaml: kept with your changes" in output and "flows/nightly.py: kept" in output
    assert (newer / "flows/nightly.py").read_text().endswith("# mine\n") and not (newer / "prefect.yaml").exists()
    assert "nothing to upgrade" in init("--upgrade")
    output = init("--upgrade", "--yes", "--take", "flows/nightly.py", "--take", "dvc.yaml")
    assert (newer / "flows/nightly.py").read_text().endswith("NEW = 1\n")
    assert not (newer / "dvc.yaml").read_text().endswith("# mine\n")
