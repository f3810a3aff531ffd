"""Tests of a flow with `jobs`: stages that do not depend on each other run at once, and DVC records all of them."""

from __future__ import annotations

import pytest

from tests.flows.service import lay_out_tiny, with_dvc
from tests.pipeline import ENVIRONMENT, dvc

# `many` meet: each of them waits for the other, so they end only if both run at once.
MEETING = """\
  first: {cmd: echo 1 > first, outs: [first]}
  many:
    matrix: {n: [1, 2]}
    cmd:
    - touch here-${item.n}
    - timeout 60 sh -c 'until test -e here-1 -a -e here-2; do sleep 0.1; done'
    - cp first many-${item.n}
    deps: [first]
    outs: ["many-${item.n}"]
  last: {cmd: cat many-1 many-2 > last, deps: [many-1, many-2], outs: [last]}
  bad: {cmd: "echo the disk is gone; exit 3", deps: [first], outs: [bad]}
  after: {cmd: touch after, deps: [bad], outs: [after]}
"""


@pytest.fixture(scope="module", autouse=True)
def prefect():
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    made = with_dvc(lay_out_tiny(tmp_path / "workspace"))
    (made / "dvc.yaml").write_text((made / "dvc.yaml").read_text() + MEETING)
    return made


@pytest.mark.slow
def test_stages_run_at_once_and_dvc_records_them(workspace):
    from flows.unlearn import StageFailedError, unlearn

    names = ["first", "many@1", "many@2", "last"]
    assert unlearn(str(workspace), stages=names, jobs=2) == dict.fromkeys(names, "done")
    assert (workspace / "last").read_text() == "1\n1\n"
    assert dvc(workspace, "status", "--json", "last").strip() == "{}"
    assert unlearn(str(workspace), stages=names, jobs=2) == dict.fromkeys(names, "up to date")
    assert unlearn(str(workspace), stages=["first", "last"], force=True, jobs=2) == dict.fromkeys(
        ["first", "last"], "done"
    )

    (workspace / "last").unlink()
    with pytest.raises(
        StageFailedError, match=r"stage bad failed: bad exited with status \d+:\n(?s:.*)the disk is gone"
    ):
        unlearn(str(workspace), stages=["bad", "after", "last"], jobs=2)
    assert (workspace / "last").read_text() == "1\n1\n" and not (workspace / "after").exists()


def test_what_a_stage_depends_on_through_others():
    from flows.side_by_side import ancestors

    needs = {"a": [], "b": ["a"], "c": ["b", "given.dvc"], "d": ["a"]}
    assert ancestors("c", needs) == {"a", "b", "given.dvc"} and ancestors("d", needs) == {"a"}
    assert ancestors("a", needs) == ancestors("unknown", needs) == set()
