"""Test demos and variants in folders other than this repository: which files they use, and which they ignore."""

from __future__ import annotations

import pytest
import yaml

from expunge.system.installed import LOCK, other_version, read_lock, stage_digests
from expunge.workspaces.demo import run_demo
from expunge.workspaces.init.graph import graph
from expunge.workspaces.init.plan import lock_of
from expunge.workspaces.workspace import has_source, lay_out
from tests.pipeline import ROOT, dvc

DEMO = (ROOT / "params.demo.yaml").read_text()


def write(root, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


@pytest.mark.slow
def test_a_folder_with_another_pipeline_gives_nothing_and_gets_a_demo(tmp_path):
    for name in ("dvc.yaml", ".dvcignore", "flows/mine.py", "data/source/private.csv", "data/requests/names.txt"):
        write(tmp_path, name, "stages: {}\n")
    workspace = tmp_path / ".expunge/demo"
    lay_out(tmp_path, workspace, DEMO)
    assert not has_source(tmp_path) and other_version(workspace) is None
    assert yaml.safe_load((workspace / "dvc.yaml").read_text()) == yaml.safe_load(graph(False))
    assert not (workspace / "flows").exists() and not (workspace / "src").exists()
    assert not [p for p in (workspace / "data").rglob("*") if p.is_file()]
    dvc(workspace, "repro", "prepare")
    assert (workspace / "data/dataset/manifest.json").is_file()
    stages = yaml.safe_load((workspace / "dvc.lock").read_text())["stages"]
    assert [dep["path"] for dep in stages["code"]["deps"]] == [LOCK.as_posix()]
    assert stages["prepare"]["params"]["reports/code.json"] == {"prepare": stage_digests()["prepare"]}


def test_the_demo_leaves_the_outputs_of_another_run_alone(tmp_path):
    """In this repository it replaced the outputs of `make run` with its own."""
    stage = {"cmd": "mkdir -p reports && echo demo > reports/result.txt", "outs": ["reports/result.txt"]}
    write(tmp_path, "dvc.yaml", yaml.safe_dump({"stages": {"report": stage}}))
    write(tmp_path, "params.demo.yaml", DEMO)
    write(tmp_path, ".dvcignore", "")
    write(tmp_path, "reports/result.txt", "of another run\n")
    (tmp_path / "src").symlink_to(ROOT / "src")
    assert has_source(tmp_path)
    where = run_demo(tmp_path)
    assert where == tmp_path / ".expunge/demo" and (where / "reports/result.txt").read_text() == "demo\n"
    assert (tmp_path / "reports/result.txt").read_text() == "of another run\n"


def test_a_workspace_gives_its_graph_flows_data_and_weights(tmp_path):
    params = yaml.safe_load(DEMO)
    params["data"].update(source="image-folder", path="images")
    params["model"].update(checkpoint="weights/w.safetensors", name="transformers:encoder")
    for name in (
        "flows/mine.py",
        "images/bag/1.png",
        "weights/w.safetensors",
        "encoder/config.json",
        "data/requests/a",
    ):
        write(tmp_path, name, "x")
    write(tmp_path, "dvc.yaml", graph(True) + "# mine\n")
    write(tmp_path, ".dvcignore", "*.mine\n")
    lock_of({}).write(tmp_path)
    workspace = tmp_path / ".expunge/variants/other"
    lay_out(tmp_path, workspace, yaml.safe_dump(params))
    assert (workspace / "dvc.yaml").read_text() == graph(True) + "# mine\n"
    assert (workspace / ".dvcignore").read_text() == "*.mine\n" and read_lock(workspace) == read_lock(tmp_path)
    for name in ("flows", "images", "weights/w.safetensors", "encoder"):
        assert (workspace / name).resolve() == (tmp_path / name).resolve(), name
    assert (workspace / "data/requests/a").read_text() == "x"
    # The demo has no `data.path`, so its stage `prepare` depends on the folder of inputs.
    lay_out(tmp_path, tmp_path / ".expunge/demo", DEMO)
    stages = yaml.safe_load((tmp_path / ".expunge/demo/dvc.yaml").read_text())["stages"]
    assert stages["prepare"]["deps"] == ["data/source"]
