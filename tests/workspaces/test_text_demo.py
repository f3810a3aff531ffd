"""Test the library on texts, from a table to a servable, with a tiny encoder.

tests/stages/test_texts.py tests the pipeline with a real encoder.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from expunge.config import load_config
from expunge.core import LinearHead, identity
from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.data.split import split
from expunge.features.extract import ExtractionSettings, extract
from expunge.features.store import FeatureStore
from expunge.models.checkpoint import load_classifier
from expunge.quality import validate_dataset
from expunge.serving.export import export_torch
from expunge.serving.servable import Contract, Servable, write_servable
from expunge.system.errors import DataError, ExpungeError, QualityError
from expunge.system.files import read_json, staged_dir, write_manifest
from expunge.training.recipe import make_classifier
from expunge.workspaces.workspace import params_with
from tests.models.texts import write_encoder
from tests.pipeline import ROOT

ANIMALS, MONEY = ["cat", "dog", "mat", "moon"], ["stock", "bank", "rate", "market"]
TOPICS = {"animals": ANIMALS, "money": MONEY, "both": None}


def write_texts(file: Path, rows: int = 240) -> Path:
    """Write texts of three topics that differ in their nouns. The topic `both` has one noun of each other topic."""
    rng = np.random.default_rng(0)
    with open(file, "w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["id", "subject", "text", "label"])
        for i in range(rows):
            label = list(TOPICS)[i % 3]
            pairs = {"animals": (ANIMALS, ANIMALS), "money": (MONEY, MONEY), "both": (ANIMALS, MONEY)}[label]
            a, b = (str(rng.choice(p)) for p in pairs)
            verb = str(rng.choice(["sat", "rose", "fell"]))
            table.writerow([f"t{i:03d}", f"p{i % 7}", f"the {a} {verb} on a {b} {'!' * (i % 4)}", label])
    return file


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Return a folder with a dataset, a split, and a model with its features, as the stages make them."""
    home = tmp_path_factory.mktemp("texts")
    prepare("text", home / "dataset", path=write_texts(home / "in.csv"), test_fraction=0.25)
    dataset = Dataset(home / "dataset")
    split(dataset, home / "split", selector="classes", classes=["money"], duplicates="include")
    changes = yaml.safe_load((ROOT / "params.text.yaml").read_text())
    changes["model"]["name"] = f"sentence:{write_encoder(home / 'bert')}"
    (home / "params.yaml").write_text(yaml.safe_dump(params_with(ROOT / "params.demo.yaml", changes)))
    config = load_config(home / "params.yaml")
    train = np.flatnonzero(dataset.splits() == "train")
    make_classifier(config, dataset, train, 1, home / "model", home / "work")
    extract(
        load_classifier(home / "model"),
        dataset,
        home / "features",
        home / "work" / "f",
        ExtractionSettings.of(config.features),
    )
    return home


def test_the_gate_passes_texts_and_stops_a_wrong_label(home, tmp_path):
    report = validate_dataset(home / "dataset", tmp_path / "docs")
    assert report["success"] and not {"height", "channels"} & {c["column"] for c in report["checks"]}
    wrong = write_texts(tmp_path / "in.csv", rows=9)
    wrong.write_text(wrong.read_text() + "t999,p1,only here,rare\n")
    prepare("text", tmp_path / "dataset", path=wrong, test_fraction=0.4)
    names = read_json(tmp_path / "dataset" / "classes.json")["names"]
    assert "rare" in names
    with staged_dir(tmp_path / "other") as d:
        for file in (tmp_path / "dataset").iterdir():
            (d / file.name).write_bytes(file.read_bytes())
        (d / "classes.json").write_text('{"names": ["a", "b", "c", "d", "e"]}')
        (d / "manifest.json").unlink()
        manifest = read_json(tmp_path / "dataset" / "manifest.json")
        fields = {k: v for k, v in manifest.items() if k not in ("schema", "producer", "files")}
        rows = {name: e["rows"] for name, e in manifest["files"].items() if "rows" in e}
        write_manifest(d, "test", rows=rows, **fields)
    with pytest.raises(QualityError, match="train_label"):
        validate_dataset(tmp_path / "other", tmp_path / "docs2")


def test_features_and_head_are_those_of_the_texts(home):
    dataset, classifier = Dataset(home / "dataset"), load_classifier(home / "model")
    store = FeatureStore(home / "features")
    texts = dataset.inputs()
    with torch.no_grad():
        alone = torch.cat([classifier.features([t]) for t in texts[:9]]).numpy()
    np.testing.assert_allclose(store.z()[:9], alone, rtol=1e-4, atol=1e-5)
    assert store.column("subject").tolist()[:3] == ["p0", "p1", "p2"]
    right = (classifier(texts).argmax(1).numpy() == dataset.labels())[dataset.splits() == "test"]
    assert right.mean() > 0.7


def test_methods_that_need_pixels_are_refused_for_texts(home):
    with pytest.raises(DataError, match="holds texts"):
        Dataset(home / "dataset").images()
    config = load_config(home / "params.yaml")
    wrong = replace(
        config,
        model=replace(config.model, training="full", saw_forget_data=True),
        train=replace(config.train, augment="flip-crop"),
    )
    with pytest.raises(ExpungeError, match=r"train\.augment: flip-crop is for images; set it to none for texts"):
        make_classifier(wrong, Dataset(home / "dataset"), np.arange(3), 1, home / "x", home / "work")


def test_a_whole_encoder_is_trained_by_the_recipe_and_saved(home):
    config, dataset = load_config(home / "params.yaml"), Dataset(home / "dataset")
    public = replace(config.model, training="full", weights="public", saw_forget_data=True)
    train = np.flatnonzero(dataset.splits() == "train")
    cost = make_classifier(replace(config, model=public), dataset, train, 1, home / "whole", home / "work")
    classifier = load_classifier(home / "whole")
    recipe = classifier.card.recipe
    assert recipe is not None and len(cost["epochs"]) == recipe["passes"] == config.train.epochs
    assert recipe["name"] == "finetune, transformer" and recipe["optimizer"] == "adamw"
    frozen = load_classifier(home / "model").backbone.state_dict()
    whole = classifier.backbone.state_dict()
    assert frozen.keys() == whole.keys() and any(not torch.equal(frozen[k], whole[k]) for k in whole)
    assert not (home / "work" / "train").exists() or not any((home / "work" / "train").iterdir())


@pytest.fixture(scope="module")
def servable(home) -> Servable:
    classifier = load_classifier(home / "model")
    with staged_dir(home / "unlearned") as d:
        LinearHead.of(classifier.head).save(d / "head.safetensors")
        identity(classifier.card.feature_dim).save(d)
        write_manifest(d, "test")
    dataset = Dataset(home / "dataset")
    (home / "servable").mkdir()
    contract = Contract.of(dataset.inputs()[:2], dataset.class_names)
    write_servable(home / "servable", home / "model", home / "unlearned", contract)
    return Servable.load(home / "servable")


def test_a_servable_answers_texts_with_probabilities(home, servable):
    texts = Dataset(home / "dataset").inputs()
    with torch.no_grad():
        expected = torch.softmax(load_classifier(home / "model")(texts).double(), 1).numpy()
    for given in (texts, np.array(texts), np.array(texts, dtype=object)):
        np.testing.assert_allclose(servable.probabilities(given), expected, atol=1e-5)
    assert servable.probabilities([]).shape == (0, 3)
    assert servable.contract.takes == "texts"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("one text", "inputs are a str"),
        (["a", None], "input 1 is a NoneType"),
        (np.zeros((2, 8, 8), np.uint8), "inputs are a ndarray"),
    ],
)
def test_inputs_that_are_no_texts_are_refused_with_the_reason(servable, bad, words):
    with pytest.raises(DataError, match=words):
        servable.probabilities(bad)


def test_a_text_model_is_not_exported_as_one_file(servable, tmp_path):
    with pytest.raises(ExpungeError, match="tokenizer is no tensor program"):
        export_torch(servable, tmp_path / "model.pt2", {})
