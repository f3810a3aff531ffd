"""Test the export of a servable to torch and ONNX files, against the probabilities of the evaluation."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.serving import export
from expunge.serving.export import export_onnx, export_torch
from expunge.serving.servable import Contract, Servable, write_servable
from expunge.system.errors import CheckpointError, ExpungeError
from tests.served_models import CLASSES, affine, evaluated, mlp, pictures, write_model, write_unlearned


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("affine", marks=pytest.mark.slow),
        pytest.param("mlp", marks=pytest.mark.slow),
        "colour, any size",
    ],
)
def case(request, tmp_path_factory):
    home = tmp_path_factory.mktemp("export")
    shape = (12, 10, 3) if "colour" in request.param else (12, 10, 1)
    classifier = write_model(home / "model", shape)
    map_ = (mlp if request.param == "mlp" else affine)(classifier.card.feature_dim)
    write_unlearned(home / "unlearned", classifier, map_)
    (home / "servable").mkdir()
    images = pictures(9, shape[: 2 if shape[2] == 1 else 3], seed=5)
    contract = Contract.of(images, CLASSES, any_size="any size" in request.param)
    write_servable(home / "servable", home / "model", home / "unlearned", contract)
    return Servable.load(home / "servable"), images, evaluated(classifier, map_, images)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_torch_file_answers_as_evaluated_at_any_batch_size(case, tmp_path):
    servable, images, expected = case
    assert export_torch(servable, tmp_path / "new" / "model.pt2", {"version": "models:/m/1"}) <= 1e-4
    files = {"expunge.json": ""}
    module = torch.export.load(tmp_path / "new" / "model.pt2", extra_files=files).module()
    for n in (1, 9):
        np.testing.assert_allclose(softmax(module(torch.from_numpy(images[:n])).numpy()), expected[:n], atol=1e-5)
    facts = json.loads(files["expunge.json"])
    assert facts == {"classes": list(CLASSES), "image_shape": list(images.shape[1:]), "version": "models:/m/1"}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["model.pt2"]


def test_onnx_model_answers_as_evaluated_at_any_batch_size(case, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    servable, images, expected = case
    assert export_onnx(servable, tmp_path / "model.onnx", {}) <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for n in (1, 9):
        given = session.run(["logits"], {"images": images[:n]})[0]
        np.testing.assert_allclose(softmax(given), expected[:n], atol=1e-5)
    facts = json.loads(session.get_modelmeta().custom_metadata_map["expunge.json"])
    assert facts["classes"] == list(CLASSES)


def one(tmp_path: Path) -> Servable:
    classifier = write_model(tmp_path / "model")
    write_unlearned(tmp_path / "unlearned", classifier, affine(classifier.card.feature_dim))
    (tmp_path / "servable").mkdir()
    write_servable(tmp_path / "servable", tmp_path / "model", tmp_path / "unlearned", Contract.of(pictures(2), CLASSES))
    return Servable.load(tmp_path / "servable")


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path, monkeypatch):
    servable, other, exact = one(tmp_path), Servable.load(tmp_path / "servable"), export._program
    with torch.no_grad():
        other.classifier.head.bias[0] += 0.01
    monkeypatch.setattr(export, "_program", lambda _: exact(other))
    with pytest.raises(CheckpointError, match="nothing was written"):
        export_torch(servable, tmp_path / "model.pt2", {})
    assert not (tmp_path / "model.pt2").exists() and not list(tmp_path.glob(".export-*"))


def test_a_layer_that_cannot_be_traced_is_named(tmp_path):
    class Branches(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :128] if float(x.sum()) > 0 else x.flatten(1)[:, 1:129]

    servable = one(tmp_path)
    servable.classifier.backbone = Branches()
    with pytest.raises(CheckpointError, match=r"model\.pt2: 'resnet-small' cannot be exported"):
        export_torch(servable, tmp_path / "model.pt2", {})


def test_a_file_name_with_the_ending_of_another_format_is_refused(tmp_path):
    with pytest.raises(ExpungeError, match=r"ends in \.pt2"):
        export_torch(one(tmp_path), tmp_path / "model.onnx", {})


def test_an_exported_file_holds_no_pickle(tmp_path):
    export_torch(one(tmp_path), tmp_path / "model.pt2", {})
    archive = zipfile.ZipFile(tmp_path / "model.pt2")
    assert any("weight_0" in name for name in archive.namelist())
    assert not [n for n in archive.namelist() if n.endswith((".pkl", ".pt")) and archive.read(n)]
