"""Test workspaces that are cloned from git and a DVC remote: they are brought up to date, and results are pushed.

The repository holds a tiny pipeline; git and DVC are real.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from expunge.system.errors import CloneError
from expunge.workspaces.clones import push, refresh, unpushed
from tests.flows.service import lay_out_tiny
from tests.pipeline import dvc

BRANCH = "expunge/tiny-forget-5"


def git(where: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")
    done = subprocess.run(("git", *identity, *arguments), cwd=where, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def publish_repository(tmp: Path) -> tuple[Path, Path]:
    """Make a bare repository with the tiny pipeline and one input under DVC, and return it and the DVC remote."""
    work, bare, remote = lay_out_tiny(tmp / "work"), tmp / "repository.git", tmp / "remote"
    remote.mkdir()
    git(work, "init", "--quiet")
    dvc(work, "init", "--quiet")
    dvc(work, "remote", "add", "--default", "storage", str(remote))
    (work / "rows.txt").write_text("7\n")
    dvc(work, "add", "--quiet", "rows.txt")
    dvc(work, "push", "--quiet")
    git(work, "add", ".")
    git(work, "commit", "--quiet", "-m", "a pipeline")
    git(tmp, "clone", "--quiet", "--bare", str(work), str(bare))
    return bare, remote


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    where = tmp_path_factory.mktemp("published")
    publish_repository(where)
    return where


@pytest.fixture
def repository(published, tmp_path):
    """Return a copy of the repository and its remote, to which a test can push.

    The repository names the address of the remote, so the copy gets the new address.
    """
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    work, bare, remote = tmp_path / "work", tmp_path / "repository.git", tmp_path / "remote"
    config = work / ".dvc" / "config"
    config.write_text(config.read_text().replace(str(published), str(tmp_path)))
    git(work, "commit", "--quiet", "-am", "here")
    git(work, "push", "--quiet", str(bare), "HEAD:main")
    return bare, remote


@pytest.mark.slow
def test_a_clone_gets_code_and_data_and_gives_back_a_lock(repository, tmp_path):
    bare, remote = repository
    clone = Path(refresh(str(bare), str(tmp_path / "clones" / "one"))["directory"])
    assert (clone / "rows.txt").read_text() == "7\n"
    main = git(bare, "rev-parse", "main")
    dvc(clone, "repro", "--quiet")
    before = sum(p.is_file() for p in remote.rglob("*"))
    assert unpushed(clone)
    commit = push(clone, BRANCH)
    assert not unpushed(clone)
    assert git(bare, "rev-parse", BRANCH) == commit and git(bare, "rev-parse", f"{BRANCH}^") == main
    assert git(bare, "diff", "--name-only", main, BRANCH) == "dvc.lock"
    assert git(bare, "rev-parse", "main") == main
    assert sum(p.is_file() for p in remote.rglob("*")) > before
    # The clone's own branch must not move, and the next run still needs the lock.
    assert git(clone, "rev-parse", "HEAD") == main and git(clone, "status", "--porcelain") == "?? dvc.lock"
    refresh(str(bare), str(clone))
    assert dvc(clone, "status").strip() == "Data and pipelines are up to date."
    assert not unpushed(clone)
    (clone / "dvc.lock").write_text((clone / "dvc.lock").read_text() + "\n")
    assert unpushed(clone)


@pytest.mark.slow
def test_another_machine_takes_what_was_made_from_the_remote(repository, tmp_path):
    """The branch brings the lock and the remote the data, and without the branch, the run cache avoids a second run."""
    bare, _ = repository
    first = Path(refresh(str(bare), str(tmp_path / "first"))["directory"])
    dvc(first, "repro", "--quiet")
    push(first, BRANCH)
    second = Path(refresh(str(bare), str(tmp_path / "second"), BRANCH)["directory"])
    dvc(second, "checkout")
    assert (second / "fitted-loft").read_text() == "1"
    third = Path(refresh(str(bare), str(tmp_path / "third"))["directory"])
    assert "is cached - skipping run" in dvc(third, "repro", "fit@loft")


@pytest.mark.slow
def test_a_merged_lock_leaves_nothing_to_push(repository, tmp_path):
    bare, _ = repository
    clone = Path(refresh(str(bare), str(tmp_path / "clone"))["directory"])
    dvc(clone, "repro", "--quiet")
    git(bare, "update-ref", "refs/heads/main", str(push(clone, BRANCH)))
    refresh(str(bare), str(clone))
    assert git(clone, "status", "--porcelain") == ""
    assert push(clone, "expunge/again") is None
    assert "expunge/again" not in git(bare, "branch")


COMPARE = """\
  compare:
    cmd: python -c "import os; os.makedirs('reports/metrics'); open('reports/metrics/a.json', 'w').write('{}')"
    deps: [held]
    metrics:
      - reports/metrics:
          cache: false
"""


@pytest.mark.slow
def test_metrics_go_with_the_lock_and_come_with_a_clone(repository, tmp_path):
    bare, _ = repository
    work = tmp_path / "work"
    (work / "dvc.yaml").write_text((work / "dvc.yaml").read_text() + COMPARE)
    # Older workspaces have this rule.
    (work / ".gitignore").write_text((work / ".gitignore").read_text() + "/reports/\n")
    git(work, "commit", "--quiet", "-am", "metrics")
    git(work, "push", "--quiet", str(bare), "HEAD:main")
    clone = Path(refresh(str(bare), str(tmp_path / "clone"))["directory"])
    dvc(clone, "repro", "--quiet")
    assert push(clone, BRANCH)
    assert git(bare, "diff", "--name-only", "main", BRANCH).split() == ["dvc.lock", "reports/metrics/a.json"]
    # Once the branch is merged, a clone has the metrics without a run. Untracked files do not stop the merge.
    git(bare, "branch", "--force", "main", BRANCH)
    refresh(str(bare), str(clone))
    assert push(clone, "expunge/again") is None and git(clone, "status", "--porcelain") == ""
    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", str(bare), str(other))
    assert (other / "reports/metrics/a.json").read_text() == "{}"


@pytest.mark.slow
def test_changes_of_tracked_files_are_dropped_and_new_commits_come_in(repository, tmp_path):
    bare, _ = repository
    clone = Path(refresh(str(bare), str(tmp_path / "clone"))["directory"])
    (clone / "params.yaml").write_text("broken")
    (clone / "begun").write_text("work in progress")
    work = tmp_path / "work"
    (work / "hold.py").write_text("print('another')\n")
    git(work, "commit", "--quiet", "-am", "another")
    git(work, "push", "--quiet", str(bare), "HEAD:main")
    refresh(str(bare), str(clone))
    assert (clone / "params.yaml").read_text() == (work / "params.yaml").read_text()
    assert (clone / "hold.py").read_text() == "print('another')\n"
    assert (clone / "begun").read_text() == "work in progress"


@pytest.mark.slow
def test_a_remote_may_be_given_by_address_where_the_repository_names_none(repository, tmp_path):
    bare, remote = repository
    work = tmp_path / "work"
    dvc(work, "remote", "remove", "storage")
    git(work, "commit", "--quiet", "-am", "no remote")
    git(work, "push", "--quiet", str(bare), "HEAD:main")
    with pytest.raises(CloneError, match=r"rows\.txt"):
        refresh(str(bare), str(tmp_path / "without"))
    clone = Path(refresh(str(bare), str(tmp_path / "with"), remote=str(remote))["directory"])
    assert (clone / "rows.txt").is_file() and git(clone, "status", "--porcelain") == ""
    dvc(clone, "repro", "--quiet")
    assert push(clone, BRANCH)


@pytest.mark.slow
def test_missing_repositories_branches_locks_and_remotes_are_named(repository, tmp_path):
    bare, _ = repository
    with pytest.raises(CloneError, match="no branch, tag or commit 'nowhere'"):
        refresh(str(bare), str(tmp_path / "a"), "nowhere")
    with pytest.raises(CloneError, match="absent"):
        refresh(str(tmp_path / "absent"), str(tmp_path / "b"))
    clone = Path(refresh(str(bare), str(tmp_path / "c"))["directory"])
    with pytest.raises(CloneError, match=r"no dvc\.lock"):
        push(clone, BRANCH)
    assert not unpushed(clone)
    dvc(clone, "remote", "remove", "storage")
    with pytest.raises(CloneError, match="no DVC remote"):
        push(clone, BRANCH)
