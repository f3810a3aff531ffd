"""A result of another plug-in version is reported with the stage to run again, and all other results are left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from expunge.checks.plugins import outdated
from expunge.config import Config, load_config
from tests.pipeline import ROOT

OLD = "plugin 0.0.9"


@pytest.fixture
def config(declare, tmp_path) -> Config:
    """Return params that name one plug-in of each kind, from the packages `plugin_0` to `plugin_3`."""
    for kind, name in (("readers", "source"), ("models", "net"), ("methods", "mine"), ("metrics", "number")):
        declare(kind, name, "json:load")
    params = yaml.safe_load((ROOT / "params.demo.yaml").read_text())
    params["data"]["source"], params["model"]["name"] = "source", "net:8"
    params["methods"], params["evaluate"]["metrics"] = ["logit-mask", "entry"], ["number"]
    params["fit"]["entry"] = {"method": "mine"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    return load_config(tmp_path / "params.yaml")


def write(root: Path, name: str, content: object) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content))


def test_an_outdated_plugin_of_each_kind_names_the_stage_to_run_again(config, tmp_path):
    write(tmp_path, "data/dataset/manifest.json", {"package": OLD})
    write(tmp_path, "models/original/model.json", {"package": OLD})
    write(tmp_path, "models/unlearned/entry/fit.json", {"package": OLD})
    write(tmp_path, "reports/evaluation/references.json", {"metrics": {"number": {"package": OLD}}})
    found = outdated(config, tmp_path)
    stages = ["prepare", "train", "fit@entry", "evaluate-references evaluate@logit-mask evaluate@entry"]
    assert found == [
        f"{stage}: made by {OLD}, but plugin_{i} 0.1.0 is installed, which DVC does not notice; "
        f"run `dvc repro --force --single-item {stage}`, then `dvc repro`"
        for i, stage in enumerate(stages)
    ]


def test_the_same_version_a_missing_result_and_results_of_expunge_are_not_reported(config, tmp_path):
    assert outdated(config, tmp_path) == []
    write(tmp_path, "data/dataset/manifest.json", {"package": "plugin_0 0.1.0"})
    write(tmp_path, "models/original/model.json", {"card": {}})
    write(tmp_path, "models/unlearned/entry/fit.json", ["damaged"])
    (tmp_path / "reports/evaluation").mkdir(parents=True)
    (tmp_path / "reports/evaluation/references.json").write_text("{")
    assert outdated(config, tmp_path) == []
