"""Test that a sweep updates the state for exact deletion from heads, which is made of sums and factors of rows.

A head that is trained anew on the remaining rows is the reference.
"""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from expunge.core import RidgeHead, SoftmaxHead
from expunge.data.dataset import Dataset
from expunge.features.store import FeatureStore
from expunge.methods.fitting import fit
from expunge.models.checkpoint import load_classifier
from expunge.sweep import sweep
from expunge.system.files import read_json, read_manifest, write_json, write_manifest
from expunge.tracking import CHAMPION, connect, move_alias
from tests.exact_workspace import NAME, delete, inputs, training_rows
from tests.sweep import people_workspace

HEADS = {"ridge": RidgeHead, "head": SoftmaxHead}


@pytest.fixture(scope="module", params=["ridge", pytest.param("head", marks=pytest.mark.slow)])
def swept(request, tmp_path_factory):
    """Yield a workspace in which twenty rows were deleted from the model and then erased by a sweep.

    The version without them is the champion. Also yield the kind of training and the number of training rows before.
    """
    root = tmp_path_factory.mktemp(f"swept-{request.param}")
    with pytest.MonkeyPatch.context() as patch, chdir(root):
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        patch.setenv("PREFECT_HOME", str(root / "prefect"))
        delete(request.param)
        move_alias(connect(), NAME, CHAMPION, "1")
        train = training_rows()
        ids = Dataset("data/dataset").sample_ids()
        report = sweep(root, [ids[i] for i in train[5:600:30]], apply=True)
        assert report.clean and {r.where for r in report.purged} >= {"models/original", "data/dataset"}
        yield root, request.param, len(train)


def states(root: Path, training: str) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of every stored state below `root`, by folder."""
    name = "ridge_head.safetensors" if training == "ridge" else "softmax_head.safetensors"
    return {p.parent.relative_to(root).as_posix(): load_file(p) for p in root.rglob("*.safetensors") if p.name == name}


def test_the_stored_state_of_a_head_is_of_the_remaining_rows_in_every_place(swept):
    root, training, before = swept
    found = states(root, training)
    assert set(found) == {"models/original", "models/unlearned/exact"}  # No registered version holds a state.
    store = FeatureStore(root / "data/features/original")
    train = np.flatnonzero(store.column("split") == "train")
    assert len(train) == before - 20
    z, y = torch.from_numpy(store.z(train)), torch.from_numpy(store.column("label")[train])
    for tensors in found.values():
        if training == "ridge":
            fresh = RidgeHead(1.0, quantum=2.0**-12).fit(z, y, 10).sums
            assert torch.equal(tensors["second"], fresh.second) and torch.equal(tensors["by_class"], fresh.by_class)
        else:
            assert torch.equal(tensors["counts"], torch.bincount(y, minlength=10))
            # The blocks, which precondition the training, are second moments of earlier rows.
            assert "blocks" not in tensors


def test_the_next_request_is_deleted_exactly_from_the_model_that_serves(swept):
    root, training, _ = swept
    with chdir(root):
        train = training_rows()
        unlearned = fit("exact", inputs(train[::100]), {"exact": {}})
        exact = unlearned.info["exact"]
        assert exact["holds"] and exact["rows"]["retained"] == len(train) - len(train[::100])
        retained = np.setdiff1d(train, train[::100])
        store = FeatureStore("data/features/original")
        fresh = HEADS[training](**exact["head"]["settings"])
        fresh.fit(torch.from_numpy(store.z(retained)), torch.from_numpy(store.column("label")[retained]), 10)
        distance = float((unlearned.head.weight - fresh.head_.weight).norm())
        if training == "ridge":
            assert distance == 0
        else:
            assert distance <= exact["accuracy"]["bound"] + fresh.bound_ + 1e-6


def test_the_original_is_the_version_that_serves(swept):
    root, training, _ = swept
    served = next(root.glob("mlartifacts/**/servable"))
    assert torch.equal(load_classifier(root / "models/original").head.weight, load_classifier(served).head.weight)
    head = HEADS[training].load(root / "models/original")
    assert torch.equal(head.head_.weight, load_classifier(served).head.weight)
    manifest = read_manifest(root / "models/original")
    assert manifest["backbone_digest"] == read_json(root / "models/original/model.json")["backbone_digest"]


def made_models(root: Path) -> None:
    """Write the models of the current request as the stages do. The model of a method that refused has no file."""
    for name, files in (("unlearned/exact", ["head"]), ("unlearned/loft", []), ("retrained/1", ["model"])):
        directory = root / "models" / name
        directory.mkdir(parents=True)
        for file in files:
            write_json(directory / f"{file}.json", {})
        write_manifest(directory, "test")


@pytest.mark.parametrize("asked", ["what the models forgot", "somebody else"])
def test_models_of_another_request_that_had_not_forgotten_are_removed(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = people_workspace.workspace(tmp_path / "workspace", [2, 3])
    made_models(root)
    people = (
        [people_workspace.person(2)]
        if asked == "what the models forgot"
        else [people_workspace.person(2), people_workspace.person(7)]
    )
    wanted = set() if asked == "what the models forgot" else {"models/retrained/1", "models/unlearned/exact"}
    look = sweep(root, subjects=people)
    assert {r.where for r in look.found if r.where.startswith("models/")} == wanted
    assert (root / "models/unlearned/exact/head.json").is_file()
    report = sweep(root, subjects=people, apply=True)
    assert {r.where for r in report.purged if r.where.startswith("models/")} == wanted
    assert (root / "models/unlearned/exact").exists() == (not wanted) == (root / "models/retrained/1").exists()
    assert (root / "models/unlearned/loft").is_dir()
