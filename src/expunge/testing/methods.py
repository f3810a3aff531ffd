"""Contract test for methods of other packages, on scikit-learn's digits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.core import SoftmaxHead
from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.data.schema import TRAIN
from expunge.features.extract import ExtractionSettings, extract
from expunge.features.store import FeatureStore
from expunge.methods.inputs import FitInputs
from expunge.methods.method import Method
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.checkpoint import load_classifier, save_classifier
from expunge.models.zoo import build
from expunge.system.errors import ConfigError
from expunge.system.files import staged_dir, write_manifest
from expunge.testing.promises import contents, differing, other_chance

FORGOTTEN_CLASS, FORGOTTEN_ROWS = 5, 20


def small_inputs(directory: Path, kind: str = "classes") -> FitInputs:
    """Return a request on the digits: to forget the class 5 (`kind` "classes") or 20 rows ("rows").

    Its files are written below `directory` on the first call. The classifier is a small ResNet with random weights and
    a softmax head fitted to its features, so it is made in seconds. No activations are stored; a method that needs them
    must be tested in a pipeline.
    """
    data, model, features = directory / "dataset", directory / "model", directory / "features"
    if not features.exists():
        prepare("digits", data)
        dataset = Dataset(data)
        classifier = build("resnet-small", len(dataset.class_names), dataset.image_shape, seed=0)
        _fit_head(classifier, dataset, directory)
        with staged_dir(model) as staging:
            save_classifier(staging, classifier)
            write_manifest(staging, __name__)
        extract(classifier, dataset, features, directory / "work", ExtractionSettings(500, 65_536))
    dataset = Dataset(data)
    train = np.flatnonzero(dataset.splits() == TRAIN)
    of_class = dataset.labels()[train] == FORGOTTEN_CLASS
    forget = train[of_class] if kind == "classes" else train[:: len(train) // FORGOTTEN_ROWS][:FORGOTTEN_ROWS]
    return FitInputs(
        store=FeatureStore(features),
        activations_dir=directory / "activations",
        dataset=dataset,
        classifier=load_classifier(model),
        forget_rows=forget,
        retain_rows=np.setdiff1d(train, forget),
        forget_classes=[FORGOTTEN_CLASS] if kind == "classes" else [],
        validation_rows=np.empty(0, np.int64),
        model_dir=model,
        forgotten_dir=directory / "forgotten",
    )


def check_method(method: Method, inputs: FitInputs, settings: dict[str, Any] | None = None) -> UnlearnedModel:
    """Fit `method` twice, check the contract of methods, and return the result for further tests.

    The contract: `facts` fit the request; unknown settings are refused; logits are finite float32 `(n, C)`; the
    original and the request are unchanged; the same settings give the same files and logits, whatever the state of the
    global generators; and the result can be loaded from its files. Raises AssertionError naming what is violated.
    """
    kind = "classes" if inputs.forget_classes else "rows"
    assert kind in method.kind.facts.requests, (
        f"facts.requests has no {kind!r}: the method does not take this kind of request"
    )
    before = _held(inputs)
    first, again = (_fitted(method, inputs, settings, chance) for chance in (1, 2))
    changed = [what for what, tensor in _held(inputs).items() if not torch.equal(before[what], tensor)]
    assert not changed, f"fit changed in place, of the original or the request: {', '.join(changed[:3])}"
    assert not inputs.classifier.training, "the original is left in training mode"
    left = [name for name, p in inputs.classifier.named_parameters() if p.grad is not None]
    assert not left, f"gradients are left on the original: {', '.join(left[:3])}"
    with _refused():
        method.fit("entry", inputs, {**(settings or {}), "no such setting": 1}, None)
    changes = method.kind.facts.changes
    assert (first.classifier is not None) == (changes == "weights"), (
        f"facts.changes is {changes!r}, but the product is not of this kind"
    )
    z = torch.cat([inputs.z_forget[:20], inputs.z_retain[:20]])
    logits = _answers(first, inputs, z)
    other = "the same settings gave other logits: take randomness from a seed, not from a global generator"
    assert torch.equal(logits, _answers(again, inputs, z)), other
    with tempfile.TemporaryDirectory() as tmp:
        places = [Path(tmp) / "first", Path(tmp) / "second"]
        for place, product in zip(places, (first, again), strict=True):
            place.mkdir()
            product.save(place)
            write_manifest(place, __name__)
        files = differing(*(contents(place) for place in places))
        assert not files, f"the same settings gave other bytes in {', '.join(files)}"
        loaded = UnlearnedModel.load(places[0])
        assert torch.equal(_answers(loaded, inputs, z), logits), "loaded from its files, the product gives other logits"
    assert loaded.info == first.info, "info does not survive JSON: use only text, numbers, lists and mappings"
    return first


def _fitted(method: Method, inputs: FitInputs, settings: dict[str, Any] | None, chance: int) -> UnlearnedModel:
    with other_chance(chance):
        result = method.fit("entry", inputs, dict(settings or {}), None)
    assert isinstance(result, UnlearnedModel), f"fit returned {type(result).__name__}, not an UnlearnedModel"
    return result


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except ConfigError:
        return
    raise AssertionError("the method accepts a setting that it does not have: make its class with methods.method.make")


def _held(inputs: FitInputs) -> dict[str, Tensor]:
    """Copies of the tensors that a method is given, by name."""
    rows = {"forget_rows": inputs.forget_rows, "retain_rows": inputs.retain_rows, "labels": inputs.labels}
    copies = {name: torch.from_numpy(np.array(values)) for name, values in rows.items()}
    copies |= {"z_forget": inputs.z_forget.clone(), "z_retain": inputs.z_retain.clone()}
    return copies | {name: tensor.clone() for name, tensor in inputs.classifier.state_dict().items()}


def _answers(result: UnlearnedModel, inputs: FitInputs, z: Tensor) -> Tensor:
    """Logits of features `z`, followed by those of images if the result has weights of its own."""
    answers = [result.logits(z)]
    if result.classifier is not None:
        assert not result.classifier.training, "the product's classifier is in training mode"
        with torch.no_grad():
            answers.append(result.classifier(inputs.dataset.inputs(inputs.forget_rows[:20])))
    for logits in answers:
        assert logits.shape[1:] == (len(inputs.dataset.class_names),), f"logits have the shape {tuple(logits.shape)}"
        assert logits.dtype == torch.float32, f"logits are {logits.dtype}, not float32"
        assert torch.isfinite(logits).all(), "logits are not finite"
    return torch.cat(answers)


def _fit_head(classifier: Any, dataset: Dataset, directory: Path) -> None:
    """Fit the head of `classifier` to its own features on training rows."""
    extract(classifier, dataset, directory / "first", directory / "work", ExtractionSettings(500, 65_536))
    train = np.flatnonzero(dataset.splits() == TRAIN)
    z, labels = torch.from_numpy(FeatureStore(directory / "first").z(train)), torch.from_numpy(dataset.labels()[train])
    head = SoftmaxHead(1e-6, tol=1e-6).fit(z, labels.long(), len(dataset.class_names)).head_
    with torch.no_grad():
        classifier.head.weight.copy_(head.weight)
        classifier.head.bias.copy_(head.bias)
