"""Test that after a sweep, the next request is deleted exactly from the champion by retraining only some shards.

A model that is trained anew on the remaining rows is the reference.
"""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.features.store import FeatureStore
from expunge.methods.fitting import fit
from expunge.models.checkpoint import load_classifier
from expunge.sweep import sweep
from expunge.system.files import read_json, read_manifest
from expunge.tracking import CHAMPION, connect, move_alias
from expunge.training.recipe import make_classifier
from tests.exact_workspace import NAME, delete, inputs, training_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["shards", "ridge-sharded"])
def swept(request, tmp_path_factory):
    """Yield a workspace in which twenty rows were deleted from the model and then erased by a sweep.

    The version without them is the champion. Also yield the kind of training.
    """
    root = tmp_path_factory.mktemp(f"swept-{request.param}")
    with pytest.MonkeyPatch.context() as patch, chdir(root):
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        patch.setenv("PREFECT_HOME", str(root / "prefect"))
        delete(request.param)
        move_alias(connect(), NAME, CHAMPION, "1")
        train = training_rows()
        ids = Dataset("data/dataset").sample_ids()
        assert sweep(root, [ids[i] for i in train[5:600:30]], apply=True).clean
        yield root, request.param


def test_the_original_becomes_the_version_that_serves_with_its_shards(swept):
    root, training = swept
    original, product = root / "models/original", root / "models/unlearned/exact"
    names = set(read_manifest(original)["files"])
    state = {n for n in read_manifest(product)["files"] if n.startswith(("steps/", "shards/")) or "head_shards" in n}
    assert len(state) == (4 if training == "shards" else 7) and state < names
    assert all((original / name).read_bytes() == (product / name).read_bytes() for name in state)
    if training == "shards":
        ours, theirs = (read_json(d / "model.json")["card"]["above"] for d in (original, product))
        assert ours == theirs


def test_the_next_deletion_gives_the_model_that_training_on_the_rest_gives(swept):
    root, training = swept
    with chdir(root):
        if not (root / "data/features/original").is_dir():
            from tests.exact_workspace import write_features

            write_features()
        train = training_rows()
        removed = train[[3, 50]]
        unlearned = fit("exact", inputs(removed), {"exact": {}})
        again = unlearned.info["exact"]["again"]
        assert unlearned.info["exact"]["holds"] and 1 <= len(again) <= 2
        store = FeatureStore("data/features/original") if training != "shards" else None
        rest = np.setdiff1d(train, removed)
        make_classifier(load_config(), Dataset("data/dataset"), rest, 1, Path("models/fresh"), Path(".expunge"), store)
        fresh = load_classifier("models/fresh")
        if training == "shards":
            assert unlearned.classifier is not None and unlearned.classifier.card == fresh.card
            ours, theirs = unlearned.classifier.state_dict(), fresh.state_dict()
            assert all(torch.equal(v, theirs[k]) for k, v in ours.items())
        else:
            assert torch.equal(unlearned.head.weight, fresh.head.weight)
            assert torch.equal(unlearned.head.bias, fresh.head.bias)
