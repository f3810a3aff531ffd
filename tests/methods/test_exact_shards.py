"""Tests of exact deletion from shards by the recipe and the method `exact`, compared with training without the rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from expunge.config import Config, load_config
from expunge.data.dataset import Dataset
from expunge.finetune.shards import STEPS
from expunge.methods.exact_shards import drawn, recompute
from expunge.methods.fitting import fit
from expunge.methods.inputs import FitInputs
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.checkpoint import load_classifier
from expunge.models.sharded import core_with_shards
from expunge.system.errors import ConfigError, QualityError
from expunge.system.files import read_json, read_manifest, staged_dir, write_manifest
from expunge.training.recipe import make_classifier
from tests.methods.test_exact_above import TABLE, Place, same_bits

SHARDS, SLICES = 3, 2


class Sharded(Place):
    """The same digits, trained in three shards of two slices each."""

    def config(self, **train: object) -> Config:
        super().config(**train)
        path = self.directory / "params.yaml"
        params = yaml.safe_load(path.read_text())
        params["model"].update(shards=SHARDS, slices=SLICES)
        path.write_text(yaml.safe_dump(params))
        return load_config(path)

    def trained(self, dataset: Dataset, name: str) -> Path:
        key = self.directory / "forgotten" / "key"
        key.parent.mkdir(exist_ok=True)
        key.write_bytes(bytes(range(32)))
        out, rows = self.directory / name / "model", np.flatnonzero(dataset.splits() == "train")
        work = self.directory / name / "work"
        make_classifier(self.config(), dataset, rows, 1, out, work, forgotten=key.parent)
        return out

    def product(self, inputs: FitInputs, name: str) -> Path:
        """Return the directory that the fit stage writes."""
        with staged_dir(self.directory / name) as staging:
            fit("exact", inputs, TABLE).save(staging)
            write_manifest(staging, "test")
        return self.directory / name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Sharded:
    return Sharded(tmp_path_factory.mktemp("shards"), count=450)


@pytest.fixture(scope="module")
def product(place: Sharded) -> tuple[FitInputs, Path]:
    """Return a request for two rows, and the directory of its product."""
    train = np.flatnonzero(place.dataset.splits() == "train")
    inputs = place.inputs(train[[7, 100]])
    return inputs, place.product(inputs, "product")


def test_the_product_is_the_model_directory_of_training_without_the_rows(
    place: Sharded, product: tuple[FitInputs, Path]
) -> None:
    inputs, directory = product
    result = UnlearnedModel.load(directory)
    again = place.trained(place.without(inputs.forget_rows, "less"), "less")
    other = load_classifier(again)
    assert result.classifier is not None and same_bits(result.classifier, other)
    assert result.classifier.card == other.card
    assert not same_bits(result.classifier, inputs.classifier)
    steps = sorted(p.name for p in (again / STEPS).iterdir())
    assert steps == [f"shard-{s:04d}-step-0000.safetensors" for s in range(SHARDS)]
    for name in steps:
        assert (directory / STEPS / name).read_bytes() == (again / STEPS / name).read_bytes()
    exact = result.info["exact"]
    assert exact["holds"] is True and exact["shards"]["parts"] == (other.card.above or {})["shards"]["parts"]
    assert 1 <= len(exact["again"]) <= 2  # two rows lie in at most two shards
    text = (directory / "fit.json").read_text() + (directory / "model.json").read_text()
    assert not any(str(i) in text for i in inputs.store.column("sample_id")[inputs.train_rows])
    assert set(read_manifest(directory)["files"]) >= {"model.safetensors", f"{STEPS}/{steps[0]}"}


def test_the_next_request_starts_from_the_product(place: Sharded, product: tuple[FitInputs, Path]) -> None:
    inputs, directory = product
    rows = inputs.retain_rows[::90]
    after = dataclasses.replace(
        inputs,
        classifier=load_classifier(directory),
        model_dir=directory,
        left_out=inputs.forget_rows,
        forget_rows=rows,
        retain_rows=np.setdiff1d(inputs.retain_rows, rows),
    )
    second = fit("exact", after, TABLE)
    both = place.inputs(np.union1d(rows, inputs.forget_rows))
    at_once = fit("exact", both, TABLE)
    assert second.classifier is not None and at_once.classifier is not None
    assert same_bits(second.classifier, at_once.classifier) and second.classifier.card == at_once.classifier.card


def test_an_audit_recomputes_all_or_chosen_shards_and_finds_changes(
    product: tuple[FitInputs, Path], tmp_path: Path
) -> None:
    inputs, directory = product
    exact = read_json(directory / "fit.json")["exact"]
    classifier = load_classifier(directory)
    found = recompute(inputs, classifier, exact, from_inputs=tmp_path / "work")
    assert found["agrees"] and found["activations"] is True and found["distance"] == 0.0
    assert found["shards_made_again"] == [0, 1, 2]
    assert recompute(inputs, classifier, exact, chosen=[1])["shards_made_again"] == [1]
    assert not recompute(inputs, inputs.classifier, exact)["agrees"]
    more = dataclasses.replace(inputs, retain_rows=inputs.train_rows)
    assert not recompute(more, classifier, exact, chosen=[1])["rows"]
    core = core_with_shards(classifier)
    assert core is not None
    core.uppers[2].head.bias.data[0] += 1e-6
    nudged = recompute(inputs, classifier, exact, chosen=[2])
    assert not nudged["agrees"] and 0 < nudged["distance"] < 1e-5


def test_refused_with_another_key_and_with_lower_layers_of_its_own(
    place: Sharded, product: tuple[FitInputs, Path], tmp_path: Path
) -> None:
    inputs, _ = product
    with pytest.raises(QualityError, match="is not the key with which the model's subjects were placed"):
        fit("exact", dataclasses.replace(inputs, forgotten_dir=tmp_path), TABLE)
    fine_tuned = load_classifier(place.original)
    core = core_with_shards(fine_tuned)
    assert core is not None
    with torch.no_grad():
        next(core.base.parameters()).add_(1e-3)
    with pytest.raises(QualityError, match="up to 'stage1' are not those that training kept"):
        fit("exact", dataclasses.replace(inputs, classifier=fine_tuned), TABLE)


def test_a_nonce_picks_without_a_pattern_that_can_be_known_before() -> None:
    nonces = [f"{i:032x}" for i in range(2000)]
    times = np.bincount([drawn(nonce, 8, 1)[0] for nonce in nonces], minlength=8)
    assert abs(times - 250).max() < 5 * np.sqrt(250)
    assert drawn(nonces[3], 8, 8) == list(range(8)) and set(drawn(nonces[3], 8, 2)) <= set(drawn(nonces[3], 8, 5))
    for bad, count in (("00" * 15, 1), ("not hex", 1), ("00" * 16, 0), ("00" * 16, 9)):
        with pytest.raises(ConfigError):
            drawn(bad, 8, count)
