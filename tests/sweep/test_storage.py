"""Test a sweep in a workspace with DVC and git, through real commands and real remotes, one of them on S3."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import yaml

from expunge.data.dataset import Dataset
from expunge.sweep import sweep
from expunge.sweep.storage import KEPT_LOCK, Storage, objects
from expunge.system import dvc as commands
from tests.pipeline import ENVIRONMENT, dvc
from tests.servers import S3_KEYS, object_store
from tests.sweep import people_workspace

pytestmark = pytest.mark.slow  # Every dvc command starts a process.
ERASED = [2, 17]
# The sweep must not run these stages; their commands would fail.
STAGES = {
    "prepare": {"cmd": "false", "deps": ["data/source"], "outs": ["data/dataset"]},
    "extract": {"cmd": "false", "deps": ["data/dataset"], "outs": ["data/features/original"]},
    "split": {"cmd": "false", "deps": ["data/dataset", "data/requests"], "outs": ["data/split"]},
    "evaluate": {"cmd": "false", "deps": ["data/features/original", "data/split"], "outs": ["data/evaluation/loft"]},
}


# These are the rules of the repository. A rule for data/source would hide its `.dvc` files from DVC, too.
IGNORED = (
    "data/dataset",
    "data/features",
    "data/split",
    "data/evaluation",
    "data/activations",
    "data/tombstones",
    ".expunge",
)


def git(root, *arguments):
    identity = ["-c", "user.name=Test", "-c", "user.email=test@localhost"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=root, env=ENVIRONMENT, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """Return a workspace that was committed and pushed twice, so remote and history hold an older state as well."""
    home = tmp_path_factory.mktemp("storage")
    root = people_workspace.workspace(home / "workspace", ERASED)
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    (root / ".gitignore").write_text("".join(f"/{p}\n" for p in IGNORED))
    git(root, "init", "-q")
    dvc(root, "init", "-q")
    dvc(root, "add", "-q", str(people_workspace.NPZ), "data/requests/one.txt")
    dvc(root, "remote", "add", "-q", "-d", "backup", str(home / "remote"))
    manifest = root / "data/evaluation/loft/manifest.json"
    content = manifest.read_text()
    manifest.write_text(content.replace('"test"', '"an older one"'))
    for text in (manifest.read_text(), content):
        manifest.write_text(text)
        dvc(root, "commit", "-f", "-q")
        dvc(root, "push", "-q", "--run-cache")
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", "a state")
    return root


@pytest.fixture
def root(tracked, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    people_workspace.copy(tracked.parent, tmp_path / "home")
    root = tmp_path / "home/workspace"
    dvc(root, "remote", "modify", "backup", "url", str(tmp_path / "home/remote"))
    return root


def erase(root):
    return sweep(root, subjects=[people_workspace.person(i) for i in ERASED], apply=True)


def hashes_of(root, stage):
    lock = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for out in lock[stage]["outs"]}


def test_the_lock_follows_nothing_has_to_run_and_history_is_named(root):
    (root / "notes.txt").write_text("asked about record-00021 today\n")
    git(root, "add", "notes.txt")
    git(root, "commit", "-q", "-m", "a note")
    git(root, "rm", "-q", "notes.txt")
    git(root, "commit", "-q", "-m", "no note")
    old = {stage: hashes_of(root, stage) for stage in STAGES}
    objects_before = objects(root / ".dvc/cache"), objects(root.parent / "remote")
    report = erase(root)
    assert report.clean
    assert json.loads(dvc(root, "status", "--json")) == {}
    storage = Storage(root)
    for store, before in zip((root / ".dvc/cache", root.parent / "remote"), objects_before, strict=True):
        assert objects(store) == storage.referenced()  # This also holds for the remote.
        assert before - objects(store)
    for stage, outs in old.items():
        for path, md5 in outs.items():
            assert hashes_of(root, stage)[path] != md5
            assert not list(root.parent.rglob(f"{md5[:2]}/{md5[2:]}"))
    purged = {(r.where, r.what) for r in report.purged}
    assert {
        ("DVC cache", "objects"),
        ("DVC remote backup", "objects"),
        ("DVC remote backup", "run-cache entries"),
    } <= purged
    for runs in (root / ".dvc/cache/runs", root.parent / "remote/runs"):  # DVC fails at an empty folder
        assert all(any(folder.iterdir()) for folder in runs.rglob("*") if folder.is_dir())
    findings = [(e.what, e.who) for e in report.not_purgeable if e.where == "git"]
    assert {what for what, _ in findings} == {
        "2 commits that name removed data, but do not contain it",
        "1 versions of files that contain ids of erased rows",
    }
    assert all("history" in who for _, who in findings)
    assert not (root / "data/requests/one.txt.dvc").exists() and not (root / KEPT_LOCK).exists()


def test_a_remote_on_s3_keeps_what_is_left(root, tmp_path, monkeypatch):
    for name, value in S3_KEYS.items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
        monkeypatch.setenv(name, value)
    (tmp_path / "seaweed").mkdir()
    with object_store(tmp_path / "seaweed", "data") as (address, client):
        dvc(root, "remote", "add", "-q", "far", "s3://data/store")
        dvc(root, "remote", "modify", "-q", "far", "endpointurl", address)
        dvc(root, "push", "-q", "--remote", "far")

        def held():
            keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="data")["Contents"]]
            return {"".join(key.split("/")[-2:]) for key in keys if "/files/md5/" in key}

        before = held()
        report = erase(root)
        assert report.clean and before - held() and held() == Storage(root).referenced()
    purged = {r.what: r.count for r in report.purged if r.where == "DVC remote far"}
    assert purged == {"objects": len(before - Storage(root).referenced())}
    (finding,) = (e for e in report.not_purgeable if e.where == "DVC remote far")
    assert finding.who == "the administrator of that storage"


def test_a_stage_that_was_stale_stays_stale_and_keeps_nothing_alive(root):
    plan = yaml.safe_load((root / "dvc.yaml").read_text())
    plan["stages"]["extract"]["cmd"] = "exit 1"  # After this change, the outputs are not those of the stage.
    (root / "dvc.yaml").write_text(yaml.safe_dump(plan))
    old = hashes_of(root, "extract")["data/features/original"]
    report = erase(root)
    assert report.clean
    assert "extract" in json.loads(dvc(root, "status", "--json"))
    assert (
        old not in objects(root / ".dvc/cache")
        and "extract" not in yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    )


def test_a_stage_that_is_gone_from_the_pipeline_keeps_nothing_alive(root):
    """Its lock entry stays when its method is taken out of params.yaml, and DVC would refuse to commit it."""
    plan = yaml.safe_load((root / "dvc.yaml").read_text())
    del plan["stages"]["evaluate"]
    (root / "dvc.yaml").write_text(yaml.safe_dump(plan))
    old = hashes_of(root, "evaluate")["data/evaluation/loft"]
    assert old in objects(root / ".dvc/cache")
    assert erase(root).clean
    assert json.loads(dvc(root, "status", "--json")) == {}
    assert old not in objects(root / ".dvc/cache")
    assert "evaluate" not in yaml.safe_load((root / "dvc.lock").read_text())["stages"]


def test_a_sweep_that_crashed_after_its_swaps_is_completed(root, monkeypatch):
    """The sweep crashes when the data are new and dvc.lock is half written. The next sweep completes both."""

    def die(*_, **__):
        (root / "dvc.lock").write_text("schema: '2.0'\nstages:\n  prep")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(commands, "commit", die)
        with pytest.raises(KeyboardInterrupt):
            erase(root)
    Dataset(root / "data/dataset")  # The swapped dataset must be complete.
    assert sweep(root, apply=True).clean
    assert json.loads(dvc(root, "status", "--json")) == {}
    assert objects(root / ".dvc/cache") == Storage(root).referenced()


def test_a_dry_run_counts_what_it_would_remove(root):
    report = sweep(root, subjects=[people_workspace.person(i) for i in ERASED])
    counts = {(r.where, r.what): r.count for r in report.found}
    # These are the older manifest of the evaluation and the listing of its directory.
    assert counts["DVC cache", "objects that dvc.lock does not name"] == 2
    assert counts["DVC remote backup", "objects that dvc.lock does not name"] == 2


def test_a_cache_that_others_may_share_is_left_to_people(root, tmp_path):
    shutil.move(root / ".dvc/cache", tmp_path / "shared")
    dvc(root, "cache", "dir", str(tmp_path / "shared"))
    before = objects(tmp_path / "shared")
    report = erase(root)
    assert report.clean and before <= objects(tmp_path / "shared")
    assert any(e.where == "DVC cache" and "--projects" in e.who for e in report.not_purgeable)
