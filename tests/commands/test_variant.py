"""`expunge variant` runs the pipeline with changed params in a folder of its own, beside the first run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from expunge.commands.variant import changes
from expunge.features.store import FeatureStore
from expunge.models.checkpoint import load_classifier
from expunge.system.errors import ConfigError
from tests.pipeline import ENVIRONMENT


def test_changes_are_read_as_yaml() -> None:
    given = ["model.name=timm:resnet18", "features.layers=[a.1, penultimate]", "model.saw_forget_data=false", "x=null"]
    assert changes(given) == {
        "model": {"name": "timm:resnet18", "saw_forget_data": False},
        "features": {"layers": ["a.1", "penultimate"]},
        "x": None,
    }


@pytest.mark.parametrize("bad", ["model.name", "=x", "model..name=x", "model.name=[1"])
def test_a_bad_change_is_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        changes([bad])


def expunge(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "expunge.cli", *arguments]
    return subprocess.run(command, cwd=workspace, env=ENVIRONMENT, text=True, capture_output=True)


LAYERS = ["_blocks.4", "_blocks.10", "_blocks.15"]
LITE0 = [
    f"features.layers=[{', '.join(LAYERS)}]",
    "model.name=efficientnet-lite0",
    "model.training=head",
    "model.saw_forget_data=false",
    "activations.cuts=[]",
    "methods=[logit-mask, loft, exact]",
    "register.name=beside",
]


@pytest.mark.long
@pytest.mark.slow
def test_other_layers_of_another_backbone_go_all_the_way_beside_the_first_run(copy: Path) -> None:
    before = {p: p.read_bytes() for d in ("data", "models", "reports") for p in (copy / d).rglob("*") if p.is_file()}
    arguments = [part for change in LITE0 for part in ("-S", change)]
    done = expunge(copy, "variant", "lite0", *arguments, "--target", "register")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert {p: p.read_bytes() for p in before} == before
    home = copy / ".expunge" / "variants" / "lite0"
    store, first = FeatureStore(home / "data/features/original"), FeatureStore(copy / "data/features/original")
    assert (store.dim, first.dim) == (472, 128)
    assert store.column("sample_id").tolist() == first.column("sample_id").tolist()
    classifier = load_classifier(home / "models" / "original")
    assert classifier.card.layers == tuple(LAYERS) and classifier.head.in_features == 472
    accuracy = json.loads((home / "reports/summary.json").read_text())["references"]["original"]["accuracy"]
    assert accuracy["test_retain"] > 0.9
    receipt = json.loads((home / "reports/registration.json").read_text())
    assert receipt["method"] is not None, (home / "reports/results.md").read_text()
    client = mlflow.MlflowClient(f"sqlite:///{copy / 'mlflow.db'}")
    version = client.get_model_version_by_alias("beside", "challenger")
    assert float(version.tags["parity"]) <= 1e-5


@pytest.mark.slow
def test_a_name_that_leaves_the_folder_is_refused(copy: Path) -> None:
    done = expunge(copy, "variant", "../elsewhere", "-S", "train.seed=2")
    assert done.returncode == 2 and "not a name for a workspace" in done.stderr
