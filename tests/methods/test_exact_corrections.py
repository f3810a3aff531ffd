"""Tests of exact correction of labels on digits, compared with training on a dataset that always had the new labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.core import RidgeHead
from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.methods import exact_above, exact_shards
from expunge.methods.exact import recompute
from expunge.methods.fitting import fit
from expunge.methods.inputs import FitInputs
from expunge.methods.utility import guard_rows
from expunge.models.checkpoint import load_classifier
from expunge.system.errors import QualityError
from expunge.training.recipe import make_classifier
from tests.methods.test_exact import Place as Heads
from tests.methods.test_exact_above import TABLE, Place, same_bits
from tests.methods.test_exact_shards import Sharded


def corrected(inputs: FitInputs, rows: np.ndarray) -> FitInputs:
    """Return the request that gives each of `rows` the class after its own."""
    labels = inputs.old_labels.copy()
    labels[rows] = (labels[rows] + 1) % 10
    dataset = inputs.dataset.with_labels(labels)
    return dataclasses.replace(
        inputs, dataset=dataset, forget_rows=rows, retain_rows=inputs.train_rows, new_labels=labels
    )


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Heads:
    return Heads(tmp_path_factory.mktemp("heads"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("above"), count=450)


@pytest.mark.parametrize("which", ["few", "class"])
@pytest.mark.parametrize("training", ["ridge", "head"])
def test_a_head_is_that_of_training_on_the_corrected_labels(
    training: str, which: str, heads: Heads, tmp_path: Path
) -> None:
    """The reference is the recipe, which has no code for corrections."""
    inputs = corrected(heads.inputs(training, heads.rows(which)), heads.rows(which))
    unlearned = fit("exact", inputs, TABLE)
    exact = unlearned.info["exact"]
    assert exact["holds"] is True and exact["rows"]["retained"] == len(inputs.train_rows)
    make_classifier(heads.config(training), inputs.dataset, inputs.train_rows, 1, tmp_path / "again", tmp_path / "work")
    again = load_classifier(tmp_path / "again").head
    if training == "ridge":  # exact sums give the same bits
        assert torch.equal(unlearned.head.weight, again.weight.data)
        assert torch.equal(unlearned.head.bias, again.bias.data)
        state = RidgeHead.load(tmp_path / "again")
        assert torch.equal(state.sums.by_class, unlearned.exact_head.sums.by_class)  # type: ignore[union-attr]
    else:
        distance = float((unlearned.head.weight - again.weight.data).norm())
        assert distance <= 2 * exact["accuracy"]["bound"] + 1e-6
        assert 0 < exact["accuracy"]["bound"] <= 1e-4
    assert float((unlearned.head.weight - inputs.head.weight).norm()) > 1e-2
    audit = recompute(inputs, unlearned.shipped_head, exact)
    assert audit["agrees"] and audit["same_bits"] >= (training == "ridge")
    old = dataclasses.replace(inputs, new_labels=None, dataset=heads.dataset)
    assert not recompute(old, unlearned.shipped_head, exact)["rows"]  # the claim includes the labels


def with_labels(place: Place, labels: np.ndarray, name: str) -> Dataset:
    """Write and return the dataset whose rows always had `labels`."""
    file, out = place.directory / f"{name}.npz", place.directory / name / "dataset"
    np.savez(file, **{**place.arrays, "labels": labels})
    prepare("npz", out, path=file, test_fraction=0.2, seed=0, raw_dir=place.directory / "raw")
    return Dataset(out)


@pytest.mark.slow
def test_a_network_above_a_cut_is_that_of_training_on_the_corrected_labels(place: Place) -> None:
    rows = place.rows("few")
    inputs = corrected(place.inputs(rows), rows)
    unlearned = fit("exact", inputs, TABLE)
    exact = unlearned.info["exact"]
    assert exact["holds"] is True and exact["procedure"].endswith("on the corrected labels")
    again = load_classifier(place.trained(with_labels(place, inputs.labels, "corrected"), "corrected"))
    assert unlearned.classifier is not None and same_bits(unlearned.classifier, again)
    assert not same_bits(again, inputs.classifier)
    assert exact_above.recompute(inputs, unlearned.classifier, exact)["agrees"]


@pytest.mark.slow
def test_of_shards_those_with_corrected_rows_are_trained_again(tmp_path: Path) -> None:
    place = Sharded(tmp_path, count=300)
    rows = np.flatnonzero(place.dataset.splits() == "train")[[7]]
    inputs = corrected(place.inputs(rows), rows)
    unlearned = fit("exact", inputs, TABLE)
    exact = unlearned.info["exact"]
    assert exact["holds"] is True and len(exact["again"]) == 1
    again = load_classifier(place.trained(with_labels(place, inputs.labels, "corrected"), "corrected"))
    assert unlearned.classifier is not None and same_bits(unlearned.classifier, again)
    assert not same_bits(again, inputs.classifier)
    assert exact_shards.recompute(inputs, unlearned.classifier, exact)["agrees"]


def test_relearning_learns_the_new_labels(place: Place) -> None:
    rows = place.rows("few")
    inputs = corrected(place.inputs(rows), rows)
    table = {"relearn": {"cut": "stage1", "epochs": 1.0, "precision": "fp32", "max_drop": 1.0}}
    result = fit("relearn", inputs, table)
    assert result.classifier is not None and result.info["targets"] == "labels"
    same = dataclasses.replace(inputs, forget_rows=rows[:1])  # it does not use which rows were corrected
    assert same_bits(result.classifier, fit("relearn", same, table).classifier)  # type: ignore[arg-type]
    other = dataclasses.replace(inputs, new_labels=inputs.old_labels)
    assert not same_bits(result.classifier, fit("relearn", other, table).classifier)  # type: ignore[arg-type]
    with pytest.raises(QualityError, match="targets: original would teach the old labels again"):
        fit("relearn", inputs, {"relearn": {"cut": "stage1", "targets": "original"}})


@pytest.mark.parametrize("method", ["fine-tune", "short-retrain"])
def test_methods_that_train_on_retained_rows_train_on_all_of_them(method: str, place: Place) -> None:
    inputs = corrected(place.inputs(place.rows("few")), place.rows("few"))
    result = fit(method, inputs, {method: {"epochs": 1, "max_drop": 1.0}})
    assert result.classifier is not None and "held_out" in result.info
    assert not np.isin(inputs.forget_rows, guard_rows(inputs)).any()


@pytest.mark.parametrize("method", ["loft", "ssd", "leace", "certified-removal", "neggrad-plus"])
def test_methods_that_only_take_away_are_refused_in_a_sentence(method: str, heads: Heads) -> None:
    inputs = corrected(heads.inputs("ridge", heads.rows("few")), heads.rows("few"))
    with pytest.raises(QualityError, match=f"{method} removes rows and cannot correct labels; use .*exact"):
        fit(method, inputs, {method: {}})
    assert fit("logit-mask", inputs, {"logit-mask": {}}).info == {"masked": []}  # the control stays the original


def test_the_head_refit_is_that_of_the_corrected_labels(heads: Heads) -> None:
    inputs = corrected(heads.inputs("head", heads.rows("few")), heads.rows("few"))
    result = fit("head-refit", inputs, {"head-refit": {"l2": 1e-3}})
    always = dataclasses.replace(inputs, forget_rows=inputs.forget_rows[:1])
    again = fit("head-refit", always, {"head-refit": {"l2": 1e-3}})
    torch.testing.assert_close(result.head.weight, again.head.weight)
    with_old = dataclasses.replace(inputs, new_labels=inputs.old_labels)
    assert (
        float((result.head.weight - fit("head-refit", with_old, {"head-refit": {"l2": 1e-3}}).head.weight).norm()) > 0.1
    )


@pytest.mark.parametrize("corrects", [True, False])
def test_influence_of_second_order_is_exact_for_ridge_and_first_order_goes_there(corrects: bool, heads: Heads) -> None:
    inputs = heads.inputs("ridge", heads.rows("few"))
    if corrects:
        inputs = corrected(inputs, inputs.forget_rows)
    n = len(inputs.train_rows)
    given = {"loss": "squared", "ridge": 1.0 / n, "temperature": 0.1, "max_drop": 1.0}
    second = fit("second-order", inputs, {"second-order": given})
    first = fit("first-order", inputs, {"first-order": given})
    y = torch.from_numpy(inputs.labels[inputs.retain_rows])
    wanted = RidgeHead(len(y) / n, temperature=0.1).fit(inputs.z_retain, y, 10).head_.weight
    far = [float((w - wanted).norm() / wanted.norm()) for w in (second.head.weight, first.head.weight)]
    start = float((inputs.head.weight - wanted).norm() / wanted.norm())
    assert far[0] < 0.1 * start and far[0] < far[1] < start  # the original's features were rounded (quantum)
    assert first.info["gradient_norm"] > second.info["gradient_norm"]
