"""Tests of saved classifiers and of weights from others: nothing is lost, damage is found, and no pickle is run."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge.models.checkpoint import (
    backbone_digest,
    digest_of_tensors,
    load_classifier,
    load_tensors,
    read_weights,
    save_classifier,
)
from expunge.models.classifier import Classifier
from expunge.models.zoo import build
from expunge.system.errors import CheckpointError, ManifestError
from expunge.system.files import read_json, staged_dir, write_json, write_manifest

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 12, 12), dtype=np.uint8)


def small_classifier(num_classes: int = 4, seed: int = 0) -> Classifier:
    return build("resnet-small", num_classes, (12, 12, 1), seed=seed)


def saved(path: Path, classifier: Classifier) -> Path:
    with staged_dir(path) as d:
        description = save_classifier(d, classifier)
        write_manifest(d, "test", digest=description["backbone_digest"])
    return path


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_round_trip_keeps_logits_and_description(tmp_path: Path) -> None:
    model = small_classifier()
    with torch.no_grad():
        model.train()(IMAGES)  # moves the batch norm statistics
        model.eval()
        back = load_classifier(saved(tmp_path / "m", model))
        assert not back.training
        assert torch.equal(back(IMAGES), model(IMAGES)) and torch.equal(back.features(IMAGES), model.features(IMAGES))
    assert (back.card, back.preprocess) == (model.card, model.preprocess)
    assert back.backbone.stages == ("stem", "stage1", "stage2", "stage3")


def test_same_weights_same_bytes_whatever_the_memory_format(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", small_classifier())
    b = saved(tmp_path / "b", small_classifier().to(memory_format=torch.channels_last))
    for file in ("model.safetensors", "model.json", "manifest.json"):
        assert (a / file).read_bytes() == (b / file).read_bytes()


def test_backbone_digest_follows_the_backbone_only(tmp_path: Path) -> None:
    model = small_classifier()
    before = backbone_digest(model)
    model.set_head(torch.ones(4, 128), torch.ones(4))
    assert backbone_digest(model) == before == read_json(saved(tmp_path / "m", model) / "model.json")["backbone_digest"]
    model.backbone.stem[0].weight.data[0, 0, 0, 0] += 1e-3
    assert backbone_digest(model) != before


def test_tensor_digest_sees_name_shape_type_and_value() -> None:
    t = torch.arange(6.0)
    variants = [{"a": t}, {"b": t}, {"a": t.view(2, 3)}, {"a": t.double()}, {"a": t + 1}, {"a": t.view(torch.int32)}]
    assert len({digest_of_tensors(v) for v in variants}) == len(variants)
    assert digest_of_tensors({"a": t, "b": t + 1}) == digest_of_tensors({"b": t + 1, "a": t.clone()})
    assert digest_of_tensors({"a": t.to(torch.bfloat16), "n": torch.tensor(3)}).startswith("sha256:")


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", small_classifier())
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)
    with pytest.raises(ManifestError, match=r"model\.safetensors: differs"):
        load_classifier(path)


def test_a_description_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", small_classifier())
    description = read_json(path / "model.json")
    description["card"]["num_classes"] = 5
    with staged_dir(tmp_path / "n") as d:
        save_file(load_file(path / "model.safetensors"), d / "model.safetensors")
        write_json(d / "model.json", description)
        write_manifest(d, "test")
    with pytest.raises(
        CheckpointError,
        match=r"its tensors do not fit this .*2 of another shape \(head.*\(4, 128\) instead of \(5, 128\)",
    ):
        load_classifier(tmp_path / "n")


def test_tensors_that_do_not_fit_are_named_and_nothing_is_loaded() -> None:
    model = small_classifier()
    before = digest_of_tensors(model.state_dict())
    tensors = {k: v + 1 for k, v in model.state_dict().items()}
    tensors["surprise"] = tensors.pop("backbone.stem.0.weight")
    with pytest.raises(CheckpointError, match=r"1 missing \(backbone\.stem\.0\.weight\); 1 unknown \(surprise\)"):
        load_tensors(model, tensors, "w.pt")
    assert digest_of_tensors(model.state_dict()) == before


def test_files_of_others_are_read_flat_nested_and_from_data_parallel_training(tmp_path: Path) -> None:
    tensors = {"fc.weight": torch.randn(3, 2), "fc.bias": torch.zeros(3)}
    save_file(tensors, tmp_path / "w.safetensors")
    torch.save(tensors, tmp_path / "flat.pt")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in tensors.items()}}, tmp_path / "nested.pth")
    for name in ("w.safetensors", "flat.pt", "nested.pth"):
        read = read_weights(tmp_path / name)
        assert read.keys() == tensors.keys() and all(torch.equal(read[k], v) for k, v in tensors.items())


@pytest.mark.parametrize("name", ["plain.pt", "zipped.pt", "nested.pt", "posing.safetensors", "zip.safetensors"])
def test_a_pickle_is_refused_and_not_executed(tmp_path: Path, name: str) -> None:
    marker, path = tmp_path / "executed", tmp_path / name
    if name in ("plain.pt", "posing.safetensors"):
        path.write_bytes(pickle.dumps(Evil(marker)))
    else:
        torch.save(
            {"state_dict": {"w": torch.ones(2)}, "args": Evil(marker)} if "nested" in name else Evil(marker), path
        )
    with pytest.raises(CheckpointError, match=rf"{name}: .*(pickle|more than tensors)"):
        read_weights(path)
    assert not marker.exists()


def test_the_pickles_above_do_execute_when_opened_carelessly(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    pickle.load(io.BytesIO(pickle.dumps(Evil(marker))))
    assert marker.exists()


def test_damaged_missing_and_strange_files_are_named(tmp_path: Path) -> None:
    save_file({"w": torch.ones(100)}, tmp_path / "cut.safetensors")
    torch.save({"w": torch.ones(100)}, tmp_path / "cut.pt")
    for name in ("cut.safetensors", "cut.pt"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    for name in ("empty.pt", "empty.safetensors", "w.ckpt"):
        (tmp_path / name).write_bytes(b"")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    for name in ("cut.safetensors", "cut.pt", "empty.pt", "empty.safetensors", "w.ckpt", "list.pt", "absent.pt"):
        with pytest.raises(CheckpointError, match=name):
            read_weights(tmp_path / name)


def test_nothing_in_our_checkpoints_is_a_pickle(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", small_classifier())
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "model.json", "model.safetensors"]
    found = subprocess.run(["grep", "-c", str(tmp_path), *map(str, path.iterdir())], capture_output=True, text=True)
    assert found.returncode == 1  # no file has the path where it was written
