"""What `dvc_query` answers in one process is what DVC's own commands say one at a time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from expunge.system import dvc
from expunge.system.errors import DataError, RequestError

PIPELINE = """
stages:
  one: {cmd: echo 1 > one, deps: [given.txt], outs: [one]}
  many: {matrix: {n: [1, 2]}, cmd: "echo ${item.n} > many-${item.n}", deps: [one], outs: ["many-${item.n}"]}
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    dvc.run("init", "--no-scm", "--quiet", root=tmp_path)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "given.txt").write_text("given")
    dvc.run("add", "given.txt", root=tmp_path)
    assert dvc.reproduce("--quiet", root=tmp_path)
    return tmp_path


def test_the_state_is_that_of_status_and_of_the_list_of_stages(workspace):
    assert dvc.query("state", workspace) == {"stale": {}, "stages": ["one", "many@1", "many@2"]}
    (workspace / "given.txt").write_text("changed")
    (workspace / "many-2").unlink()
    found = dvc.query("state", workspace)
    assert found["stale"] == json.loads(dvc.run("status", "--json", root=workspace))
    assert {"one", "many@2", "given.txt.dvc"} <= set(found["stale"]) and "many@1" not in found["stale"]
    assert found["stages"] == dvc.run("stage", "list", "--name-only", root=workspace).split()


def test_the_plan_is_what_dvc_repro_looks_at_in_its_order(workspace):
    everything = {"given.txt.dvc": [], "one": ["given.txt.dvc"], "many@1": ["one"], "many@2": ["one"]}
    plan = dvc.query("plan", workspace)
    assert plan == {"needs": everything, "stale": []}
    looked = re.findall(r"^(?:Stage )?'(.+)' didn't change", dvc.run("repro", root=workspace), re.M)
    assert list(plan["needs"]) == looked
    (workspace / "many-2").unlink()
    (workspace / "one").unlink()
    found = dvc.query("plan", workspace, targets=["many@1"])
    assert found == {
        "needs": {n: everything[n] for n in ("given.txt.dvc", "one", "many@1")},
        "stale": ["one", "many@1"],
    }
    assert set(dvc.query("plan", workspace, targets=["many"])["needs"]) == set(everything)
    with pytest.raises(DataError, match=r"dvc plan failed: .*nothing"):
        dvc.query("plan", workspace, targets=["nothing"])


def test_the_places_are_those_of_the_configuration(workspace, tmp_path_factory):
    remote = tmp_path_factory.mktemp("remote")
    assert dvc.query("places", workspace)["cache"] == str(workspace / ".dvc/cache")
    dvc.run("cache", "dir", "elsewhere", root=workspace)
    dvc.run("remote", "add", "near", str(remote), root=workspace)
    dvc.run("remote", "add", "beside", "../kept", root=workspace)
    dvc.run("remote", "add", "far", "s3://bucket/below", root=workspace)
    found = dvc.query("places", workspace)
    assert found["cache"] == str(workspace / "elsewhere")
    beside = str(workspace.parent / "kept")
    assert found["remotes"] == {"near": str(remote), "beside": beside, "far": "s3://bucket/below"}
    doctor = dvc.run("doctor", root=workspace).splitlines()
    assert f"Repo.site_cache_dir: {found['index']}" in [line.strip() for line in doctor]


def test_a_folder_without_dvc_is_an_error_of_the_caller(tmp_path):
    with pytest.raises(DataError, match=r"dvc places failed: .*not inside of a DVC repository"):
        dvc.query("places", tmp_path)
    with pytest.raises(RequestError, match="dvc state failed"):
        dvc.query("state", tmp_path, RequestError)
