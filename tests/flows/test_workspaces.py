"""Tests that two workspaces on one worker have a clone, a branch and a queue of their own."""

from __future__ import annotations

import pytest

from tests.flows.service import Service, lay_out_tiny
from tests.pipeline import dvc
from tests.workspaces.test_clones import git, publish_repository

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("service")]
STAGES = dict.fromkeys(["begin", "long", "fit@loft", "fit@ru-linear"], "Completed")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    made = Service(tmp_path_factory.mktemp("service"))
    yield made
    made.end()


@pytest.mark.long
def test_runs_work_in_clones_and_push_what_they_made(service, tmp_path):
    bare, remote = publish_repository(tmp_path)
    operations = lay_out_tiny(tmp_path / "operations")  # the worker starts here, but no pipeline runs here
    for name in ("red", "blue"):
        output = service.deploy(operations, "--name", name, "--repository", str(bare))
        assert f"deployed unlearn/{name}-pipeline" in output
    service.worker(operations)
    clones = operations / ".expunge" / "clones"
    stored = sum(p.is_file() for p in remote.rglob("*"))

    first = service.until(service.request("unlearn/red-pipeline"), "Completed")
    assert service.tasks(first.id) == {**STAGES, "push": "Completed"}
    branch = "expunge/" + first.name.replace(", ", "-").replace(" · ", "-").replace(" ", "-").replace(":", "-")
    assert git(bare, "diff", "--name-only", "main", branch) == "dvc.lock"
    assert sum(p.is_file() for p in remote.rglob("*")) > stored
    assert branch in service.artifacts(first.id)["unlearning-branch"].data
    assert not (operations / "held").exists() and (clones / "red" / "held").exists()

    # The other clone takes the results of the first one from the cache instead of computing them.
    second = service.until(service.request("nightly/blue-nightly"), "Completed")
    assert "is cached - skipping run" in service.logs() and service.tasks(second.id)["push"] == "Completed"
    branches = git(bare, "branch")

    # While one workspace is busy, the other runs. It finds nothing to do, and so pushes no branch.
    (clones / "red" / "hold").touch()
    busy = service.request("unlearn/red-pipeline", stages=["long"], force=True)
    service.until(busy, "Running")
    service.until(service.request("nightly/blue-nightly"), "Up to date")
    assert service.run(busy).state.name == "Running" and git(bare, "branch") == branches
    (clones / "red" / "hold").unlink()
    service.until(busy, "Completed")
    assert dvc(clones / "red", "status").strip() == "Data and pipelines are up to date."
