"""Tests that `dvc repro` finds nothing to run if an erasure has met the request in params.yaml."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from expunge.data.dataset import Dataset
from expunge.erasure.standing import keep_split, rows_asked
from tests.pipeline import ROOT, change, dvc
from tests.sweep import people_workspace

STAGES = """
stages:
  split:
    cmd: python -m expunge.stages.split
    deps: [data/dataset, data/requests]
    params: [split]
    outs: [data/split]
"""


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    root = people_workspace.workspace(tmp_path / "workspace", [5])
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    return root


def test_the_rows_asked_for_are_those_that_params_select(root):
    dataset = Dataset("data/dataset")
    change(root, lambda p: p["split"].update(selector="classes", classes=[2]))
    asked = rows_asked(Path("params.yaml").read_text(), dataset)
    train = dataset.splits() == "train"
    np.testing.assert_array_equal(asked, train & (dataset.labels() == 2))
    change(root, lambda p: p["split"].update(selector="ids", file="data/requests/gone.csv"))
    np.testing.assert_array_equal(rows_asked(Path("params.yaml").read_text(), dataset), train)


@pytest.mark.slow
def test_a_split_that_still_holds_leaves_nothing_to_run(root):
    """The batch was split by a list of ids, and the restored params.yaml selects the same rows by their class."""
    change(root, lambda p: p["split"].update(selector="classes", classes=[2]))
    before = Path("params.yaml").read_text()
    keep_split()  # does nothing without a dvc.lock
    dvc(root, "init", "--no-scm", "--quiet")
    (root / "dvc.yaml").write_text(STAGES)
    ids = np.array(Dataset("data/dataset").sample_ids())[rows_asked(before, Dataset("data/dataset"))]
    (root / "data/requests/batch.txt").write_text("".join(f"{i}\n" for i in ids))
    change(root, lambda p: p["split"].update(selector="ids", file="data/requests/batch.txt"))
    dvc(root, "repro")
    (root / "data/requests/batch.txt").unlink()
    (root / "params.yaml").write_text(before)
    assert json.loads(dvc(root, "status", "--json"))
    keep_split()
    assert json.loads(dvc(root, "status", "--json")) == {}
