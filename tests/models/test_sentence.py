"""Tests of sentence encoders as backbones, against transformers on one text at a time."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge.models.checkpoint import backbone_digest, load_classifier, save_classifier
from expunge.models.sentence import ROWS
from expunge.models.zoo import build
from expunge.system.errors import CheckpointError, ConfigError, DataError
from expunge.system.files import staged_dir, write_manifest
from expunge.system.vision_imports import import_vision
from tests.models.texts import write_encoder

TEXTS = ["the cat sat on the mat", "Stocks rose!", "a dog", "the bank rate fell to a moon", "cats ?"]
HEAD = {"training": "head", "saw_forget_data": False}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "bert")


@pytest.fixture(scope="module")
def model(directory):
    return build(f"sentence:{directory}", 3, None, **HEAD)


def by_hand(directory: Path, text: str, layer: int = -1) -> torch.Tensor:
    """Return the mean over the tokens of one text, which needs neither padding nor a mask."""
    transformers = import_vision("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    theirs = transformers.AutoModel.from_pretrained(directory).eval()
    with torch.no_grad():
        ids = tokenizer(text, return_tensors="pt", padding=False, truncation=True)
        return theirs(**ids, output_hidden_states=True).hidden_states[layer][0].mean(0)


def test_features_are_the_mean_over_the_tokens_of_each_text(model, directory):
    with torch.no_grad():
        z = model.features(TEXTS)
    assert z.shape == (5, 16) and model.card.feature_dim == 16
    expected = torch.stack([by_hand(directory, t) for t in TEXTS])
    torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-6)
    assert z.std(0).min() > 0.01


def test_neither_neighbours_nor_order_nor_length_change_a_text(model):
    many = [" ".join(TEXTS[i % 5].split()[: 1 + i % 4]) for i in range(2 * ROWS + 7)]
    with torch.no_grad():
        together = model.features(many)
        alone = torch.cat([model.features([t]) for t in many])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_a_text_beyond_the_encoders_length_is_cut(model, directory):
    long = " ".join(["cat"] * 40)
    with torch.no_grad():
        assert model.preprocess([long]).shape == (1, 12)
        torch.testing.assert_close(model.features([long])[0], by_hand(directory, long), rtol=1e-5, atol=1e-6)


def test_the_copy_on_disk_needs_neither_directory_nor_name(directory, tmp_path):
    moved = shutil.copytree(directory, tmp_path / "moved")
    model = build(f"sentence:{moved}", 3, None, **HEAD)
    with torch.no_grad():
        expected = model(TEXTS)
    with staged_dir(tmp_path / "m") as d:
        save_classifier(d, model)
        write_manifest(d, "test")
    shutil.rmtree(moved)
    back = load_classifier(tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(back(TEXTS), expected)
    assert backbone_digest(back) == backbone_digest(model)
    tokenizer = tmp_path / "m" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"moon"', '"noon"'))
    with staged_dir(tmp_path / "other") as d:
        for name in ("model.json", "model.safetensors", "tokenizer.json"):
            shutil.copy(tmp_path / "m" / name, d)
        write_manifest(d, "test")
    with pytest.raises(CheckpointError, match="not the tokenizer"):
        load_classifier(tmp_path / "other")


def test_layers_are_averaged_inside_the_text_and_put_side_by_side(directory):
    model = build(f"sentence:{directory}", 3, None, layers=["encoder.layer.0", "penultimate"], **HEAD)
    assert (model.card.feature_dim, model.head.in_features) == (32, 32)
    with torch.no_grad():
        z = model.features(TEXTS)
        for i, text in enumerate(TEXTS):
            expected = torch.cat([by_hand(directory, text, layer=1), by_hand(directory, text)])
            torch.testing.assert_close(z[i], expected, rtol=1e-5, atol=1e-6)
        twin = copy.deepcopy(model)
        assert torch.equal(twin.features(TEXTS[:2]), model.features(TEXTS[:2]))


def test_an_encoder_under_the_head_of_its_pretraining_is_taken_without_it(directory, tmp_path):
    given = shutil.copytree(directory, tmp_path / "bert")
    tensors = load_file(given / "model.safetensors")
    renamed = {f"bert.{k}": v for k, v in tensors.items() if not k.startswith("pooler")}
    save_file(
        {**renamed, "cls.predictions.bias": torch.zeros(3)}, given / "model.safetensors", metadata={"format": "pt"}
    )
    with torch.no_grad():
        other = build(f"sentence:{given}", 3, None, **HEAD).features(TEXTS)
        assert torch.equal(other, build(f"sentence:{directory}", 3, None, **HEAD).features(TEXTS))
    save_file(dict(list(renamed.items())[4:]), given / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="missing"):
        build(f"sentence:{given}", 3, None, **HEAD)


@pytest.mark.parametrize(
    ("name", "shape", "options", "words"),
    [
        ("resnet-small", None, {}, "resnet-small takes images, but the dataset holds texts"),
        ("sentence:{}", (8, 8, 1), {}, "takes texts, but the dataset holds images"),
        ("sentence:{}", None, {"training": "none"}, "a text encoder has no head for these classes"),
        ("sentence:{}", None, {"image_size": 32}, "must be null for texts"),
        ("sentence:{}/nowhere", None, {}, "transformers cannot read"),
        ("sentence:{}", None, {"layers": ["encoder.layer.7"]}, r"no module 'model\.encoder\.layer\.7'; similar"),
    ],
)
def test_impossible_settings_are_refused(directory, name, shape, options, words):
    with pytest.raises(ConfigError, match=words):
        build(name.format(directory), 3, shape, **{**HEAD, **options})


def test_a_directory_without_tokenizer_or_weights_is_refused(directory, tmp_path):
    (tmp_path / "a").mkdir()
    shutil.copy(directory / "config.json", tmp_path / "a")
    with pytest.raises(ConfigError, match=r"has no model\.safetensors"):
        build(f"sentence:{tmp_path / 'a'}", 3, None, **HEAD)
    shutil.copy(directory / "model.safetensors", tmp_path / "a")
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        build(f"sentence:{tmp_path / 'a'}", 3, None, **HEAD)


@pytest.mark.parametrize("bad", ["one text", ["a", None], ["a", b"b"], np.zeros((2, 8, 8, 1), np.uint8)])
def test_only_texts_are_tokenised(model, bad):
    with pytest.raises(DataError, match="expected a list of texts"):
        model(bad)


def test_a_sentence_encoders_own_limit_holds(directory, tmp_path):
    given = shutil.copytree(directory, tmp_path / "bert")
    (given / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 5}))
    assert build(f"sentence:{given}", 3, None, **HEAD).preprocess.max_length == 5
