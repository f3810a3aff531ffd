"""Tests of exact deletion from a head on digits, compared with training the head again without the rows.

The public backbone is a small network with seeded random weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from expunge.config import Config, load_config
from expunge.core import LinearHead, RidgeHead, SoftmaxHead
from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.features.extract import ExtractionSettings, extract
from expunge.features.store import FeatureStore
from expunge.ledger.merkle import merkle_root
from expunge.methods.exact import recompute
from expunge.methods.fitting import fit
from expunge.methods.inputs import FitInputs
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.checkpoint import load_classifier, save_classifier
from expunge.models.zoo import build
from expunge.system.errors import ConfigError, QualityError
from expunge.system.files import read_json, staged_dir, write_manifest
from expunge.training.recipe import make_classifier

ROOT = Path(__file__).parents[2]
TABLE = {"exact": {}}
HEADS = {
    "ridge": {"ridge": 1.0, "quantum": 2.0**-12},
    "head": {"ridge": 1e-3, "tol": 1e-7},
}


class Place:
    """Digits, and a small network with seeded weights that no data were used for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        prepare("digits", directory / "dataset", path=None, test_fraction=0.2, seed=0, raw_dir=directory / "raw")
        self.dataset = Dataset(directory / "dataset")
        network = build("resnet-small", 10, self.dataset.image_shape, seed=3)
        save_file({k: v.clone() for k, v in network.state_dict().items()}, directory / "public.safetensors")

    def config(self, training: str, **model: object) -> Config:
        params = yaml.safe_load((ROOT / "params.demo.yaml").read_text())
        params["model"].update(
            training=training, saw_forget_data=False, checkpoint=str(self.directory / "public.safetensors"), **model
        )
        params["train"]["head"] = HEADS[training]
        path = self.directory / f"params-{training}.yaml"
        path.write_text(yaml.safe_dump(params))
        return load_config(path)

    def trained(self, training: str) -> Path:
        """Train the original and extract its features on the first call, and return its model directory."""
        out, store = self.directory / training, self.directory / f"{training}-features"
        if not out.is_dir():
            config = self.config(training)
            rows = np.flatnonzero(self.dataset.splits() == "train")
            make_classifier(config, self.dataset, rows, 1, out, self.directory / "work")
            settings = ExtractionSettings.of(config.features)
            extract(load_classifier(out), self.dataset, store, self.directory / "work" / "features", settings)
        return out

    def inputs(self, training: str, forget: np.ndarray) -> FitInputs:
        out = self.trained(training)
        rows = np.flatnonzero(self.dataset.splits() == "train")
        return FitInputs(
            store=FeatureStore(self.directory / f"{training}-features"),
            activations_dir=self.directory / "none",
            dataset=self.dataset,
            classifier=load_classifier(out),
            forget_rows=forget,
            retain_rows=np.setdiff1d(rows, forget),
            forget_classes=[],
            validation_rows=np.empty(0, np.int64),
            model_dir=out,
            forgotten_dir=self.directory / "forgotten",
        )

    def rows(self, which: str) -> np.ndarray:
        """Return training rows: 20 of all classes, or all of class 3."""
        train = np.flatnonzero(self.dataset.splits() == "train")
        return train[5:600:30] if which == "few" else train[self.dataset.labels()[train] == 3]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("exact"))


@pytest.mark.parametrize("which", ["few", "class"])
@pytest.mark.parametrize("training", ["ridge", "head"])
def test_the_product_is_what_training_without_the_rows_gives(training, which, place, tmp_path):
    """The reference is the recipe on retained rows, which has no code for deletion."""
    inputs = place.inputs(training, place.rows(which))
    unlearned = fit("exact", inputs, TABLE)
    exact = unlearned.info["exact"]
    assert exact["holds"] is True
    make_classifier(place.config(training), place.dataset, inputs.retain_rows, 1, tmp_path / "again", tmp_path / "work")
    again = load_classifier(tmp_path / "again").head
    if training == "ridge":  # exact sums give the same bits
        assert torch.equal(unlearned.head.weight, again.weight.data)
        assert torch.equal(unlearned.head.bias, again.bias.data)
    else:
        distance = (unlearned.head.weight - again.weight).norm()
        assert float(distance) <= 2 * exact["accuracy"]["bound"] + 1e-6
        assert 0 < exact["accuracy"]["bound"] <= 1e-4
    assert not torch.equal(unlearned.head.weight, inputs.head.weight)
    z = torch.from_numpy(inputs.store.z(inputs.retain_rows))
    right = unlearned.logits(z).argmax(1).numpy() == inputs.labels[inputs.retain_rows]
    assert right.mean() > 0.6  # ten classes, on features of random weights
    audit = recompute(inputs, unlearned.shipped_head, exact)
    assert audit["agrees"] and audit["same_bits"] >= (training == "ridge")


@pytest.mark.parametrize("training", ["ridge", "head"])
def test_the_record_names_what_the_claim_rests_on(training, place, tmp_path):
    inputs = place.inputs(training, place.rows("few"))
    with staged_dir(tmp_path / "product") as staging:
        fit("exact", inputs, TABLE).save(staging)
        write_manifest(staging, "test")
    exact = read_json(tmp_path / "product" / "fit.json")["exact"]
    assert exact["public"]["backbone_digest"].startswith("sha256:")
    assert exact["rows"]["retained"] == len(inputs.retain_rows)
    assert exact["seed"] == 1 and {"torch", "numpy", "scipy", "python"} == set(exact["versions"])
    text = (tmp_path / "product" / "fit.json").read_text()
    assert not any(str(i) in text for i in inputs.store.column("sample_id")[inputs.train_rows][:50])
    # The same rows give the same Merkle root, and other rows another one.
    assert fit("exact", inputs, TABLE).info["exact"]["rows"] == exact["rows"]
    other = fit("exact", place.inputs(training, place.rows("few")[1:]), TABLE).info["exact"]
    assert other["rows"]["merkle_root"] != exact["rows"]["merkle_root"]
    # The state of the product, from which the next request starts, counts only the retained rows.
    state = (RidgeHead if training == "ridge" else SoftmaxHead).load(tmp_path / "product")
    assert state.n_ == len(inputs.retain_rows)
    UnlearnedModel.load(tmp_path / "product")


@pytest.mark.parametrize("training", ["ridge", "head"])
def test_an_audit_finds_what_is_not_exact(training, place):
    inputs = place.inputs(training, place.rows("few"))
    exact = fit("exact", inputs, TABLE).info["exact"]
    assert not recompute(inputs, inputs.head, exact)["agrees"]  # the original in place of the product
    more = dataclasses.replace(inputs, retain_rows=inputs.train_rows)
    found = recompute(more, inputs.head, exact)
    assert not found["rows"] and not found["agrees"]
    head = fit("exact", inputs, TABLE).head
    nudged = LinearHead(head.weight + 1e-2, head.bias)
    assert not recompute(inputs, nudged, exact)["agrees"]


def test_exact_is_refused_with_the_reason_where_it_cannot_be_exact(place, tmp_path):
    inputs = place.inputs("ridge", place.rows("few"))

    def with_card(**changes: object) -> FitInputs:
        classifier = load_classifier(place.trained("ridge"))
        classifier.card = dataclasses.replace(classifier.card, **changes)
        return dataclasses.replace(inputs, classifier=classifier)

    with pytest.raises(QualityError, match="backbone was trained on rows that a request may name"):
        fit("exact", with_card(saw_forget_data=True), TABLE)
    with pytest.raises(QualityError, match="training is full"):
        fit("exact", with_card(training="full", saw_forget_data=True), TABLE)
    with staged_dir(tmp_path / "bare") as staging:
        save_classifier(staging, inputs.classifier)
        write_manifest(staging, "test", backbone_digest="sha256:0")
    with pytest.raises(QualityError, match=r"contains no ridge_head\.json"):
        fit("exact", dataclasses.replace(inputs, model_dir=tmp_path / "bare"), TABLE)
    with pytest.raises(ConfigError, match="takes no settings"):
        fit("exact", inputs, {"exact": {"ridge": 2.0}})
    with pytest.raises(ConfigError, match=r"train\.head"):
        config = place.config("ridge")
        bad = dataclasses.replace(config, train=dataclasses.replace(config.train, head={"rigde": 1.0}))
        make_classifier(bad, place.dataset, inputs.retain_rows, 1, tmp_path / "x", tmp_path / "work")


def test_the_root_is_that_of_rfc_6962():
    def tree(leaves: list[bytes]) -> bytes:
        """Return the root by the recursive definition, which splits at the largest power of two below n."""
        if len(leaves) == 1:
            return hashlib.sha256(b"\x00" + leaves[0]).digest()
        k = 1 << (len(leaves) - 1).bit_length() - 1
        return hashlib.sha256(b"\x01" + tree(leaves[:k]) + tree(leaves[k:])).digest()

    for n in range(1, 40):
        leaves = [bytes([i]) for i in range(n)]
        assert merkle_root(leaves) == "sha256:" + tree(leaves).hex()
    assert merkle_root([]) == "sha256:" + hashlib.sha256(b"").hexdigest()
