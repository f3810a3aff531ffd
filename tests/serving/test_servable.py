"""Test the servable model: its probabilities against those of the evaluation, its files, and its checks of images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from expunge.serving.servable import Contract, Servable, write_servable
from expunge.system.errors import DataError, ManifestError
from tests.served_models import CLASSES, affine, evaluated, mlp, pictures, write_model, write_unlearned


@pytest.fixture(params=["affine", "mlp"])
def case(request, tmp_path):
    classifier = write_model(tmp_path / "model")
    map_ = {"affine": affine, "mlp": mlp}[request.param](classifier.card.feature_dim)
    write_unlearned(tmp_path / "unlearned", classifier, map_)
    return classifier, map_


def write(tmp_path: Path) -> Path:
    out = tmp_path / "servable"
    out.mkdir()
    write_servable(out, tmp_path / "model", tmp_path / "unlearned", Contract.of(pictures(3), CLASSES))
    return out


def test_probabilities_are_those_of_the_unlearned_classifier(case, tmp_path):
    servable = Servable.load(write(tmp_path))
    images = pictures(9, seed=5)
    given = servable.probabilities(images)
    assert given.dtype == np.float32 and given.shape == (9, len(CLASSES))
    np.testing.assert_allclose(given, evaluated(*case, images), atol=1e-5)
    assert np.ptp(given, axis=0).max() > 0.3  # The probabilities must depend on the image.


def test_any_batch_size_gives_the_same_rows(case, tmp_path):
    servable = Servable.load(write(tmp_path))
    images = pictures(300)  # The servable splits these into two batches.
    whole = servable.probabilities(images)
    one_by_one = np.concatenate([servable.probabilities(images[i : i + 1]) for i in (0, 255, 256, 299)])
    np.testing.assert_allclose(whole[[0, 255, 256, 299]], one_by_one, atol=1e-5)
    assert servable.probabilities(images[:0]).shape == (0, len(CLASSES))


def test_a_map_folded_into_the_head_is_not_stored_apart(tmp_path):
    classifier = write_model(tmp_path / "model")
    write_unlearned(tmp_path / "unlearned", classifier, affine(classifier.card.feature_dim))
    out = write(tmp_path)
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "model.json", "model.safetensors", "serving.json"]
    shipped, original = load_file(out / "model.safetensors"), classifier.state_dict()
    assert not np.allclose(shipped["head.weight"], original["head.weight"])
    assert all(bool((shipped[k] == original[k]).all()) for k in shipped if k.startswith("backbone."))


def test_writing_twice_gives_the_same_bytes(case, tmp_path):
    first = write(tmp_path)
    manifest = (first / "manifest.json").read_text()
    first.rename(tmp_path / "first")
    assert (write(tmp_path) / "manifest.json").read_text() == manifest


BAD = {
    "list": ([[0] * 10] * 12, "images are a list"),
    "float": (pictures(2).astype(np.float32) / 255, "pixels are float32"),
    "int64": (pictures(2).astype(np.int64), "pixels are int64"),
    "transposed": (pictures(2, (10, 12)), r"shape \(2, 10, 12\)"),
    "one image": (pictures(1)[0], r"shape \(12, 10\)"),
    "colour": (pictures(2, (12, 10, 3)), r"shape \(2, 12, 10, 3\)"),
    "scaled then cast": ((pictures(2) / 255).astype(np.uint8), r"scaled to \[0, 1\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused_with_the_reason(name, tmp_path):
    contract = Contract.of(pictures(3), CLASSES)
    images, message = BAD[name]
    with pytest.raises(DataError, match=message):
        contract.check(images)


def test_binary_images_are_accepted_where_the_model_expects_them():
    binary = pictures(3) // 128
    assert Contract.of(binary, CLASSES).check(binary) is binary


def test_a_model_for_any_size_still_requires_its_channels(tmp_path):
    classifier = write_model(tmp_path / "model", (12, 10, 3))
    write_unlearned(tmp_path / "unlearned", classifier, affine(classifier.card.feature_dim))
    out = tmp_path / "servable"
    out.mkdir()
    contract = Contract.of(pictures(2, (12, 10, 3)), CLASSES, any_size=True)
    write_servable(out, tmp_path / "model", tmp_path / "unlearned", contract)
    servable = Servable.load(out)
    assert servable.contract == contract and contract.shape == (-1, -1, 3)
    given = servable.probabilities(pictures(2, (30, 17, 3)))
    np.testing.assert_allclose(given.sum(1), 1, atol=1e-6)
    for bad in ((30, 17), (30, 17, 1), (0, 17, 3)):
        with pytest.raises(DataError, match="any, any, 3"):
            servable.probabilities(np.ones((2, *bad), np.uint8))


def test_a_changed_file_is_noticed(case, tmp_path):
    out = write(tmp_path)
    contract = json.loads((out / "serving.json").read_text())
    (out / "serving.json").write_text(json.dumps({**contract, "classes": CLASSES[::-1]}))
    with pytest.raises(ManifestError, match=r"serving\.json"):
        Servable.load(out)


def test_class_names_must_fit_the_model(case, tmp_path):
    with pytest.raises(ValueError, match="3 class names for a model of 4"):
        write_servable(tmp_path, tmp_path / "model", tmp_path / "unlearned", Contract.of(pictures(3), CLASSES[:3]))
