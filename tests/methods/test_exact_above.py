"""Tests of exact deletion above a cut on digits, compared with training on a dataset that never had the rows."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from expunge.config import Config, load_config
from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.features.extract import ExtractionSettings, extract
from expunge.features.store import FeatureStore
from expunge.finetune.above import activations_alone, keep
from expunge.finetune.cut import fetch_activations
from expunge.methods.exact_above import recompute
from expunge.methods.fitting import fit
from expunge.methods.inputs import FitInputs
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.checkpoint import load_classifier
from expunge.models.classifier import Classifier
from expunge.models.cuts import split_at_cut
from expunge.models.lower import lower_digest
from expunge.models.sharded import unsharded
from expunge.models.zoo import build
from expunge.system.errors import ConfigError, QualityError
from expunge.system.files import read_json, read_manifest, staged_dir, write_manifest
from expunge.training.recipe import make_classifier

ROOT = Path(__file__).parents[2]
TABLE: dict[str, dict[str, object]] = {"exact": {}}


class Place:
    """Digits as arrays, and a small network with seeded weights that no data were used for."""

    def __init__(self, directory: Path, name: str = "resnet-small", cut: str = "stage1", count: int = 900) -> None:
        self.directory, self.name, self.cut = directory, name, cut
        bunch = load_digits()
        self.arrays = {
            "images": np.round(bunch.images[:count] * (255 / 16)).astype(np.uint8)[..., None],
            "labels": bunch.target[:count],
            "ids": np.array([f"visit-{i:05d}" for i in range(count)]),
            "split": np.array(["test" if i % 5 == 4 else "train" for i in range(count)]),
        }
        self.public: Path | None = None
        if name == "resnet-small":
            network = build(name, 10, (8, 8, 1), seed=3)
            self.public = directory / "public.safetensors"
            save_file({k: v.clone() for k, v in network.state_dict().items()}, self.public)
        self.dataset = self.without(np.empty(0, np.int64), "all")
        self.original = self.trained(self.dataset, "all")

    def config(self, **train: object) -> Config:
        params = yaml.safe_load((ROOT / "params.demo.yaml").read_text())
        checkpoint = None if self.public is None else str(self.public)
        params["model"].update(name=self.name, training="above", cut=self.cut, checkpoint=checkpoint)
        params["model"].update(weights="public", saw_forget_data=False)
        params["activations"]["cuts"] = [self.cut]
        params["methods"] = ["logit-mask", "exact"]
        params["train"].update(epochs=2, precision="fp32", **train)
        path = self.directory / "params.yaml"
        path.write_text(yaml.safe_dump(params))
        return load_config(path)

    def without(self, gone: np.ndarray, name: str) -> Dataset:
        """Write and return the dataset that never had the rows `gone`."""
        file = self.directory / f"{name}.npz"
        retained = np.setdiff1d(np.arange(len(self.arrays["labels"])), gone)
        np.savez(file, **{k: v[retained] for k, v in self.arrays.items()})
        out = self.directory / name / "dataset"
        prepare("npz", out, path=file, test_fraction=0.2, seed=0, raw_dir=self.directory / "raw")
        return Dataset(out)

    def trained(self, dataset: Dataset, name: str) -> Path:
        """Return the model directory that the train stage makes of a dataset, in a work directory of its own."""
        out, rows = self.directory / name / "model", np.flatnonzero(dataset.splits() == "train")
        make_classifier(self.config(), dataset, rows, 1, out, self.directory / name / "work")
        return out

    def activations(self, classifier: Classifier) -> Path:
        """Return the directory that the activations stage writes."""
        out = self.directory / "all" / "activations"
        if not out.is_dir():
            with staged_dir(out) as staging:
                file = f"{self.cut}.npy"
                keep(classifier, self.dataset, self.cut, self.directory / "all" / "work", staging / file)
                rows = {file: int((self.dataset.splits() == "train").sum())}
                lower = {self.cut: lower_digest(split_at_cut(unsharded(classifier), self.cut))}
                write_manifest(staging, "test", rows=rows, dataset_digest=self.dataset.digest, lower=lower)
        return out

    def inputs(self, forget: np.ndarray) -> FitInputs:
        classifier, store = load_classifier(self.original), self.directory / "all" / "features"
        if not store.is_dir():
            work = self.directory / "all" / "work" / "features"
            extract(classifier, self.dataset, store, work, ExtractionSettings.of(self.config().features))
        rows = np.flatnonzero(self.dataset.splits() == "train")
        return FitInputs(
            store=FeatureStore(store),
            activations_dir=self.activations(classifier),
            dataset=self.dataset,
            classifier=classifier,
            forget_rows=forget,
            retain_rows=np.setdiff1d(rows, forget),
            forget_classes=[],
            validation_rows=np.empty(0, np.int64),
            model_dir=self.original,
            forgotten_dir=self.directory / "forgotten",
        )

    def rows(self, which: str) -> np.ndarray:
        """Return training rows: 7 of all classes, or all of class 3."""
        train = np.flatnonzero(self.dataset.splits() == "train")
        return train[5:400:60] if which == "few" else train[self.dataset.labels()[train] == 3]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("above"))


def same_bits(one: Classifier, two: Classifier) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def shown_exact(place: Place, which: str) -> Classifier:
    """Assert that deletion equals training on a dataset without the rows, and return the network trained there."""
    forget = place.rows(which)
    inputs = place.inputs(forget)
    unlearned = fit("exact", inputs, TABLE)
    exact = unlearned.info["exact"]
    assert exact["holds"] is True
    other = place.without(forget, which)
    assert other.rows == place.dataset.rows - len(forget)
    again = load_classifier(place.trained(other, which))
    assert unlearned.classifier is not None
    assert same_bits(unlearned.classifier, again) and unlearned.classifier.card == again.card
    assert not same_bits(again, inputs.classifier)
    return again


@pytest.mark.parametrize("which", ["class", pytest.param("few", marks=pytest.mark.slow)])
def test_the_product_is_the_network_of_training_without_the_rows(place: Place, which: str) -> None:
    """The reference is the recipe on another dataset with its own activations. Weights and description are equal."""
    again = shown_exact(place, which)
    test = np.flatnonzero(place.dataset.splits() == "test")
    labels = place.dataset.labels()[test]
    with torch.no_grad():
        answers = again(place.dataset.images(test)).argmax(1).numpy()
    known = labels != 3 if which == "class" else labels >= 0
    assert (answers[known] == labels[known]).mean() > 0.8
    if which == "class":
        assert not (answers == 3).any()  # the class still exists, but was not learned


@pytest.mark.slow
def test_a_network_with_drop_connect_is_that_of_training_without_the_rows(tmp_path: Path) -> None:
    shown_exact(Place(tmp_path, "efficientnet-lite0", "_blocks.10", 500), "few")


def test_activations_of_a_row_do_not_depend_on_the_other_rows(place: Place, tmp_path: Path) -> None:
    inputs = place.inputs(place.rows("few"))
    retained = activations_alone(inputs.classifier, place.dataset, place.cut, tmp_path)
    other = place.without(place.rows("few"), "fewer")
    less = activations_alone(inputs.classifier, other, place.cut, tmp_path)
    assert np.array_equal(less, retained[inputs.among_train(inputs.retain_rows)])
    assert len(list((tmp_path / "activations").glob("*.npy"))) == 2
    # They equal the activations from a batch up to rounding.
    batch = fetch_activations(inputs.classifier, place.dataset.images(inputs.train_rows), place.cut)
    np.testing.assert_allclose(np.float32(retained), np.float32(batch), rtol=2e-3, atol=1e-4)


def test_no_picture_is_read_and_no_lower_layer_runs(place: Place) -> None:
    inputs = place.inputs(place.rows("few"))
    below = dict(inputs.classifier.backbone.named_modules())[
        "stem.0"
    ]  # the stand-in for the stem does not run this convolution
    ran: list[int] = []
    below.register_forward_hook(lambda _m, _i, out: ran.append(len(out)))
    expected = fit("exact", place.inputs(place.rows("few")), TABLE).classifier
    for part in (inputs.dataset.directory).glob("part-*.parquet"):
        shutil.move(part, part.with_suffix(".away"))
    try:
        got = fit("exact", inputs, TABLE).classifier
    finally:
        for part in (inputs.dataset.directory).glob("part-*.away"):
            shutil.move(part, part.with_suffix(".parquet"))
    assert got is not None and expected is not None and same_bits(got, expected)
    assert set(ran) <= {2, 3}  # two batches of noise with which the cut is found


@pytest.mark.slow
def test_the_record_names_its_inputs_and_an_audit_recomputes_it(place: Place, tmp_path: Path) -> None:
    inputs = place.inputs(place.rows("few"))
    with staged_dir(tmp_path / "product") as staging:
        fit("exact", inputs, TABLE).save(staging)
        write_manifest(staging, "test")
    exact = read_json(tmp_path / "product" / "fit.json")["exact"]
    assert exact["public"]["weights"] == inputs.classifier.card.weights
    assert exact["recipe"]["cut"] == "stage1" and exact["seed"] == exact["recipe"]["seed"] == 1
    assert exact["rows"]["retained"] == len(inputs.retain_rows)
    text = (tmp_path / "product" / "fit.json").read_text()
    assert not any(str(i) in text for i in inputs.store.column("sample_id")[inputs.train_rows])
    product = UnlearnedModel.load(tmp_path / "product")
    assert product.classifier is not None
    found = recompute(inputs, product.classifier, exact, from_inputs=tmp_path / "work")
    assert found["agrees"] and found["activations"] is True and found["distance"] == 0.0
    # The audit disagrees with the original in place of the product, with other rows and with a changed weight.
    assert not recompute(inputs, inputs.classifier, exact)["agrees"]
    more = dataclasses.replace(inputs, retain_rows=inputs.train_rows)
    assert not recompute(more, product.classifier, exact)["rows"]
    product.classifier.head.bias.data[0] += 1e-6
    nudged = recompute(inputs, product.classifier, exact)
    assert not nudged["agrees"] and 0 < nudged["distance"] < 1e-5
    # The next request starts from the product.
    again = dataclasses.replace(inputs, classifier=UnlearnedModel.load(tmp_path / "product").classifier)
    second = fit("exact", dataclasses.replace(again, retain_rows=inputs.retain_rows[3:]), TABLE)
    assert second.info["exact"]["holds"] is True


def test_refused_where_the_lower_layers_are_not_public(place: Place) -> None:
    def refused(reason: str, change: object) -> None:
        inputs = place.inputs(place.rows("few"))
        change(inputs.classifier)  # type: ignore[operator]
        with pytest.raises(QualityError, match=reason):
            fit("exact", inputs, TABLE)

    def fine_tuned(classifier: Classifier) -> None:
        """Change all weights by one step on training rows."""
        optimizer = torch.optim.SGD(classifier.parameters(), lr=1e-4)
        rows = np.flatnonzero(place.dataset.splits() == "train")[:50]
        logits = classifier(place.dataset.images(rows))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(place.dataset.labels()[rows]).long()).backward()
        optimizer.step()

    def described_anew(classifier: Classifier) -> None:
        fine_tuned(classifier)
        above = dict(classifier.card.above or {})
        above["lower_digest"] = lower_digest(split_at_cut(classifier, place.cut))
        classifier.card = dataclasses.replace(classifier.card, above=above)

    def with_card(**changes: object) -> object:
        def change(classifier: Classifier) -> None:
            classifier.card = dataclasses.replace(classifier.card, **changes)

        return change

    refused("up to 'stage1' are not those that training kept", fine_tuned)
    refused("up to 'stage1' are not those of the public weights", described_anew)
    refused("saw_forget_data: true", with_card(saw_forget_data=True))
    refused("does not name its public weights and its recipe", with_card(above=None))
    removed = {"source": "nowhere.safetensors", "digest": "sha256:0"}
    refused("the layers up to 'stage1' cannot be shown to be public", with_card(weights=removed))


def test_refused_where_the_activations_are_others(place: Place, tmp_path: Path) -> None:
    inputs = place.inputs(place.rows("few"))

    def kept(change: object = None, **fields: object) -> FitInputs:
        directory = tmp_path / f"kept-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(inputs.activations_dir, directory)
        manifest = read_manifest(directory)
        (directory / "manifest.json").unlink()
        said = {k: manifest[k] for k in ("dataset_digest", "lower")} | fields
        write_manifest(directory, "test", **said)  # type: ignore[arg-type]
        return dataclasses.replace(inputs, activations_dir=directory)

    with pytest.raises(QualityError, match="computed from other rows or other lower layers"):
        fit("exact", kept(dataset_digest="sha256:0"), TABLE)
    with pytest.raises(QualityError, match="computed from other rows or other lower layers"):
        fit("exact", kept(lower={}), TABLE)
    damaged = kept()
    file = damaged.activations_dir / "stage1.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(QualityError, match="differs from its manifest"):
        fit("exact", damaged, TABLE)
    with pytest.raises(ConfigError, match="takes no settings"):
        fit("exact", inputs, {"exact": {"seed": 2}})


def test_a_seed_of_its_own_gives_another_network(place: Place, tmp_path: Path) -> None:
    rows = np.flatnonzero(place.dataset.splits() == "train")
    make_classifier(place.config(), place.dataset, rows, 2, tmp_path / "model", place.directory / "all" / "work")
    other = load_classifier(tmp_path / "model")
    first = load_classifier(place.original)
    assert not same_bits(other, first)
    lower = {lower_digest(split_at_cut(model, place.cut)) for model in (other, first)}
    assert len(lower) == 1
    with pytest.raises(ConfigError, match=r"params\.yaml: train: .*batch_size at least 2"):
        make_classifier(place.config(batch_size=1), place.dataset, rows, 2, tmp_path / "no", tmp_path / "work")
