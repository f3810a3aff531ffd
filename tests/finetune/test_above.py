"""Tests of training above a cut of a text encoder.

Leaving rows out of the training must give the same bits as a dataset that never had them.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.finetune.above import activations_alone, keep, train_above, train_rows
from expunge.models.cuts import split_at_cut
from expunge.models.lower import lower_digest, public_lower_digest
from expunge.models.zoo import build

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from texts import write_encoder

CUT = "encoder.layer.0"
WORDS = ["cat", "dog", "moon", "stock", "rose", "bank", "rate", "mat"]


def texts(directory: Path, gone: set[int]) -> Dataset:
    """Return a dataset of 64 different texts of 1 to 7 words in two classes, without the rows `gone`.

    Row 5 is the longest text.
    """
    directory.mkdir()
    with (directory / "texts.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["id", "text", "label", "split"])
        for i in range(64):
            words = [WORDS[i % 8], *["the"] * (i // 8 % 3), WORDS[i // 8], *["sat", "on"] * 2 * (i == 5)]
            if i not in gone:
                out.writerow([f"t{i}", " ".join(words), "ab"[i % 2], "test" if i % 16 == 15 else "train"])
    prepare("text", directory / "dataset", path=directory / "texts.csv", raw_dir=directory / "raw")
    return Dataset(directory / "dataset")


@pytest.mark.slow
def test_texts_are_trained_above_a_layer_bit_for_bit(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    model = build(f"sentence:{encoder}", 2, None, training="above", saw_forget_data=False, public=True)
    recipe = {
        "cut": CUT, "epochs": 2.0, "batch_size": 8, "lr": 0.05, "targets": "labels", "precision": "fp32", "seed": 4,
        "start": "public",
    }  # fmt: skip
    removed = {5, 9, 20}
    whole, less = texts(tmp_path / "whole", set()), texts(tmp_path / "less", removed)
    retained, other = (activations_alone(model, d, CUT, tmp_path / "work") for d in (whole, less))
    assert retained.shape[1] > other.shape[1]  # without the longest text, the others are padded less
    ids = np.array(whole.sample_ids())[train_rows(whole)]
    stay = np.flatnonzero(~np.isin(ids, [f"t{i}" for i in removed]))
    one = train_above(model, retained, whole.labels()[train_rows(whole)], stay, recipe).classifier_
    two = train_above(model, other, less.labels()[train_rows(less)], np.arange(len(stay)), recipe).classifier_
    a, b = one.state_dict(), two.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a) and one.card == two.card
    before = model.state_dict()
    changed = {k for k in a if not torch.equal(a[k], before[k])}
    assert any("layer.1" in k for k in changed) and not any("layer.0" in k or "embeddings" in k for k in changed)
    lower = lower_digest(split_at_cut(model, CUT))
    assert one.card.above == {"recipe": recipe, "lower_digest": lower}
    assert public_lower_digest(one, CUT) == lower


def test_stored_activations_are_the_file_that_training_read(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    model = build(f"sentence:{encoder}", 2, None, training="above", saw_forget_data=False, public=True)
    whole, less = texts(tmp_path / "whole", set()), texts(tmp_path / "less", {1})
    activations_alone(model, less, CUT, tmp_path / "work")
    read = activations_alone(model, whole, CUT, tmp_path / "work")
    keep(model, whole, CUT, tmp_path / "work", tmp_path / "kept.npy")
    assert np.array_equal(np.load(tmp_path / "kept.npy"), read, equal_nan=True)
    [left] = (tmp_path / "work" / "activations").iterdir()  # the activations of the other dataset were removed
    assert left.samefile(tmp_path / "kept.npy")
