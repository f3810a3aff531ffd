from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from expunge.commands.beside import changes
from expunge.errors import ConfigError
from expunge.features.store import FeatureStore
from expunge.models.checkpoint import load_classifier
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


@pytest.mark.slow
def test_another_backbones_features_lie_beside_the_first_ones(copy: Path) -> None:
    before = {p: p.read_bytes() for p in (copy / "data" / "features").rglob("*") if p.is_file()}
    layers = ["_blocks.4", "_blocks.10", "_blocks.15"]
    arguments = [f"features.layers=[{', '.join(layers)}]", "model.name=efficientnet-lite0", "model.training=head"]
    arguments += ["model.saw_forget_data=false"]
    done = expunge(copy, "beside", "lite0", *(part for a in arguments for part in ("-S", a)))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert {p: p.read_bytes() for p in before} == before
    home = copy / ".expunge" / "beside" / "lite0"
    store, first = FeatureStore(home / "data/features/original"), FeatureStore(copy / "data/features/original")
    assert (store.dim, first.dim) == (472, 128)
    assert store.column("sample_id").tolist() == first.column("sample_id").tolist()
    assert np.isfinite(store.z()).all()
    classifier = load_classifier(home / "models" / "original")
    assert classifier.card.layers == tuple(layers) and classifier.head.in_features == 472
    history = json.loads((home / "data/features/original/manifest.json").read_text())
    assert history["dim"] == 472


@pytest.mark.slow
def test_a_name_that_leaves_the_folder_is_refused(copy: Path) -> None:
    done = expunge(copy, "beside", "../elsewhere", "-S", "train.seed=2")
    assert done.returncode == 2 and "a plain name" in done.stderr
