"""Tests of texts: a whole encoder is trained on token ids, and every method that changes weights works on it."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge.core.estimator import Estimator
from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.finetune import METHODS, ReGUn, ResidualAlignment
from expunge.finetune.rows import examples
from expunge.models.checkpoint import digest_of_tensors
from expunge.models.classifier import Classifier
from expunge.models.zoo import build
from expunge.system.errors import ConfigError, DataError
from expunge.training.trainer import train

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from texts import write_encoder

CLASSES = ("pets", "money", "sky", "place", "acts")
# Words that only this class has.
OWN = (("cat", "dog"), ("stock", "bank"), ("moon", "rose"), ("mat", "rate"), ("sat", "fell"))
FORGOTTEN = 1
# With these settings the methods work on a few dozen texts.
SETTINGS: dict[str, dict[str, Any]] = {
    "ssd": {"alpha": 1.0, "batch_size": 16},
    "scrub": {"max_epochs": 1, "epochs": 2},
    "loss-free-ssd": {"alpha": 1.0},
    "retention-mask": {"fisher_rows": 40},
    "residual-alignment": {"lr": 0.1, "epochs": 8, "batch_size": 16},
    "partially-blinded": {"epochs": 2},
    "projected-gradient": {"epochs": 2},
    "min-norm": {"rows": 12},
}
PIXELS = ("boundary-shrink", "instance-wise", "jit", "natmu", "unsir")


class Texts:
    """A dataset of texts, an encoder that was trained on all of its training rows, and the rows of a request."""

    def __init__(self, home: Path) -> None:
        rng = np.random.default_rng(0)
        with (home / "texts.csv").open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["id", "text", "label", "split"])
            for i in range(120):
                words = [*rng.choice(["the", "a", "on", "to", "!", "?"], rng.integers(2, 8)), OWN[i % 5][i // 5 % 2]]
                part = "test" if i % 6 == 5 else "train"
                out.writerow([f"t{i}", " ".join(rng.permutation(words)), CLASSES[i % 5], part])
        prepare("text", home / "dataset", path=home / "texts.csv", raw_dir=home / "raw")
        self.dataset = Dataset(home / "dataset")
        self.labels = self.dataset.labels()
        rows = np.flatnonzero(self.dataset.splits() == "train")
        removed = self.dataset.class_names.index(CLASSES[FORGOTTEN])
        self.retain, self.forget = rows[self.labels[rows] != removed], rows[self.labels[rows] == removed]
        self.name = f"sentence:{write_encoder(home / 'encoder')}"
        self.model = self.build(1)
        self.ids = examples(self.model, self.dataset)
        self.trained(self.model, rows)

    def build(self, seed: int) -> Classifier:
        return build(self.name, 5, None, training="full", saw_forget_data=True, public=True, seed=seed)

    def trained(self, model: Classifier, rows: Any, **changes: Any) -> list[dict[str, float]]:
        recipe = {
            "epochs": 20, "batch_size": 16, "lr": 0.02, "momentum": 0.9, "weight_decay": 0.01, "precision": "fp32",
            "seed": 3, "optimizer": "adamw", "schedule": "cosine", "layer_decay": 0.75,
        }  # fmt: skip
        return train(model, self.ids[rows], self.labels[rows], **{**recipe, **changes})

    def accuracy(self, model: Classifier, rows: Any) -> float:
        with torch.no_grad():
            return float((model(self.ids[rows]).argmax(1).numpy() == self.labels[rows]).mean())

    def fit(self, name: str) -> Any:
        method: type[Estimator] = METHODS[name]
        rows = (self.retain, self.forget)
        return method(**SETTINGS.get(name, {})).fit(self.model, self.ids, self.labels, *rows)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return Texts(tmp_path_factory.mktemp("texts"))


@pytest.mark.slow
def test_token_ids_give_the_outputs_of_the_texts(texts: Texts) -> None:
    written = texts.dataset.inputs()
    assert texts.ids.dtype == np.int32 and texts.ids.shape[0] == texts.dataset.rows
    with torch.no_grad():
        alone = torch.cat([texts.model([text]) for text in written])  # type: ignore[list-item]
        np.testing.assert_allclose(texts.model(texts.ids).numpy(), alone.numpy(), rtol=1e-4, atol=1e-5)
    assert (texts.ids == -1).any()  # shorter texts end before the longest
    part = examples(texts.model, texts.dataset, np.array([4, 2]))
    np.testing.assert_array_equal(part, texts.ids[[4, 2], : part.shape[1]])


def test_a_whole_encoder_learns_and_repeats_itself(texts: Texts) -> None:
    before = texts.build(1)
    rows = np.concatenate([texts.retain, texts.forget])
    assert texts.accuracy(before, rows) < 0.6 and texts.accuracy(texts.model, rows) > 0.95
    again = texts.build(1)
    texts.trained(again, np.sort(rows))
    assert digest_of_tensors(again.state_dict()) == digest_of_tensors(texts.model.state_dict())
    changed = {k for k, v in texts.model.state_dict().items() if not torch.equal(v, before.state_dict()[k])}
    assert any("embeddings" in k for k in changed) and any("layer.1" in k for k in changed)


def test_layer_decay_numbers_the_layers_of_an_encoder(texts: Texts) -> None:
    from expunge.training.descent import make_optimizer

    model = texts.build(1)
    groups = make_optimizer(model, "adamw", 1.0, 0.9, 0.01, 0.5).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    parts = ("embeddings", "layer.0.", "layer.1.", "head")
    of = [{value for name, value in scale.items() if part in name} for part in parts]
    assert all(len(values) == 1 for values in of)
    embeddings, lower, upper, head = (values.pop() for values in of)
    assert embeddings == lower / 2 == upper / 4 and upper == head == 1.0


def test_a_resumed_training_on_texts_ends_with_the_same_bytes(texts: Texts, tmp_path: Path) -> None:
    one, two = texts.build(2), texts.build(2)
    texts.trained(one, texts.retain, epochs=2)
    whole = digest_of_tensors(one.state_dict())
    stopped = texts.build(2)
    with pytest.raises(KeyboardInterrupt):
        import expunge.training.trainer as trainer

        watch = trainer._Run.watch

        def stop(run: Any, history: list[dict[str, float]], bf16: bool) -> None:
            watch(run, history, bf16)
            if len(history) == 2:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer._Run, "watch", stop)
            texts.trained(stopped, texts.retain, epochs=2, resume_dir=tmp_path)
    texts.trained(two, texts.retain, epochs=2, resume_dir=tmp_path)
    assert digest_of_tensors(two.state_dict()) == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(METHODS) - {*PIXELS, "regun"}))
def test_methods_change_a_text_encoder_and_repeat_themselves(name: str, texts: Texts) -> None:
    before = digest_of_tensors(texts.model.state_dict())
    one, two = texts.fit(name).classifier_, texts.fit(name).classifier_
    assert digest_of_tensors(one.state_dict()) == digest_of_tensors(two.state_dict()) != before
    assert digest_of_tensors(texts.model.state_dict()) == before
    assert all(bool(torch.isfinite(t).all()) for t in one.state_dict().values())


def test_single_texts_are_unlearned_with_the_help_of_unseen_ones(texts: Texts) -> None:
    """ReGUn and residual alignment take their targets for rows of classes that stay from rows never trained on."""
    unseen = np.flatnonzero(texts.dataset.splits() == "test")
    some = np.concatenate([texts.retain[:5], texts.forget[:5]])
    rest = np.setdiff1d(np.concatenate([texts.retain, texts.forget]), some)
    for method in (ReGUn(epochs=2), ResidualAlignment(epochs=2)):
        fitted = method.fit(texts.model, texts.ids, texts.labels, rest, some, unseen)
        changed = digest_of_tensors(fitted.classifier_.state_dict())
        assert changed != digest_of_tensors(texts.model.state_dict())


@pytest.mark.parametrize("name", PIXELS)
def test_methods_that_change_pixels_refuse_texts(name: str, texts: Texts) -> None:
    with pytest.raises(ConfigError, match="takes texts; use another method"):
        texts.fit(name)


def test_residual_alignment_forgets_a_class_of_texts_through_its_adapters(texts: Texts) -> None:
    """The reconstruction of arXiv 2411.08443: only the weights of linear layers change, and by at most the rank."""
    fitted = texts.fit("residual-alignment")
    result, rank = fitted.classifier_, ResidualAlignment().rank
    assert texts.accuracy(texts.model, texts.forget) > 0.9 and texts.accuracy(result, texts.forget) < 0.2
    assert texts.accuracy(result, texts.retain) > 0.9
    old = texts.model.state_dict()
    moved = {k: v - old[k] for k, v in result.state_dict().items() if not torch.equal(v, old[k])}
    assert moved and all(k.startswith("backbone.") and k.endswith(".weight") and v.ndim == 2 for k, v in moved.items())
    assert all(int(torch.linalg.matrix_rank(v.double(), rtol=1e-4)) <= rank for v in moved.values())


def test_images_for_a_text_encoder_are_refused(texts: Texts) -> None:
    pixels = np.zeros((texts.dataset.rows, 8, 8), np.uint8)
    with pytest.raises(DataError, match="token ids must be int32"):
        ResidualAlignment().fit(texts.model, pixels, texts.labels, texts.retain, texts.forget)
