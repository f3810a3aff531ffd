"""Test the pipeline with a model that is trained above a cut: deletion, retraining and evaluation of one request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from expunge.models.zoo import build
from expunge.system.files import read_json, read_manifest
from tests.pipeline import change, dvc, lay_out, stage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[(1, 1), (3, 2)], ids=["whole", "shards"])
def workspace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the workspace of a finished request, once with a model trained whole and once in shards of slices."""
    root = lay_out(tmp_path_factory.mktemp("above") / "workspace")
    shards, slices = request.param
    network = build("resnet-small", 10, (8, 8, 1), seed=3)
    weights = root / "data/source/public.safetensors"
    save_file({k: v.clone() for k, v in network.state_dict().items()}, weights)

    def settings(params: dict) -> None:
        params["model"].update(training="above", cut="stage1", weights="public", saw_forget_data=False)
        params["model"]["checkpoint"] = "data/source/public.safetensors"
        params["model"].update(shards=shards, slices=slices)
        params["train"].update(epochs=2)
        params["split"].update(selector="classes", classes=[3])
        params["methods"] = ["logit-mask", "exact"]
        params["activations"]["cuts"] = ["stage1"]
        params["retrain"]["seeds"] = [1]  # This is also the seed of `train`.

    change(root, settings)
    dvc(root, "add", "-q", "data/source/public.safetensors")
    dvc(root, "repro", "-q", "evaluate@exact", "evaluate-references")
    return root


def test_the_retrained_model_of_the_same_seed_has_the_bytes_of_the_deleted_one(workspace: Path) -> None:
    files = [workspace / "models" / name for name in ("retrained/1", "unlearned/exact", "original")]
    retrained, exact, original = ((f / "model.safetensors").read_bytes() for f in files)
    assert retrained == exact != original
    assert read_json(files[0] / "model.json") == read_json(files[1] / "model.json")


def test_a_deleted_network_is_evaluated_by_its_own_weights(workspace: Path) -> None:
    block = read_json(workspace / "reports/evaluation/exact.json")
    assert block["exact"]["holds"] is True
    references = read_json(workspace / "reports/evaluation/references.json")
    assert block["accuracy"] == references["retrained"][0]["accuracy"]
    assert block["accuracy"]["forget"] == 0.0 < references["original"]["accuracy"]["forget"]


def test_the_stage_keeps_the_activations_that_training_read(workspace: Path) -> None:
    retained = workspace / "data/activations"
    manifest = read_manifest(retained)
    assert set(manifest["lower"]) == {"stage1"} and set(manifest["files"]) == {"stage1.npy"}
    card = read_json(workspace / "models/original/model.json")["card"]
    assert manifest["lower"]["stage1"] == card["above"]["lower_digest"]
    [read] = (workspace / ".expunge/activations").glob("*.npy")
    assert read.samefile(retained / "stage1.npy")


def test_nothing_is_stale_and_a_wrong_cut_is_refused_before_training(workspace: Path) -> None:
    assert "evaluate@exact" not in json.loads(dvc(workspace, "status", "--json", "evaluate@exact"))
    change(workspace, lambda p: (p["model"].update(cut="stage3"), p["activations"].update(cuts=["stage3"])))
    done = stage(workspace, "train")
    assert done.returncode == 2 and "no weights lie above it but the head's" in done.stderr
