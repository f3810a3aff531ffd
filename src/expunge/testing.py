"""What authors of methods test theirs against: the contract of the table, on scikit-learn's digits.

from expunge.testing import check_method, small_inputs

def test_contract(tmp_path):
    check_method(METHOD, small_inputs(tmp_path))
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
from expunge.system.files import staged_dir, write_manifest

FORGOTTEN_CLASS, FORGOTTEN_ROWS = 5, 20


def small_inputs(directory: Path, kind: str = "classes") -> FitInputs:
    """A request on the digits, written below `directory` once: the class 5 ("classes"), or 20 rows ("rows").

    The classifier is a small ResNet with random weights and a softmax head fitted to its features, so it is made in
    seconds. Activations are not kept: a method that needs them is tested in a pipeline.
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
    """Fit `method` twice and check what every line of the table keeps. Returns the product, for tests of its own.

    Raises AssertionError saying which promise is broken: facts that fit the request, finite logits `(n, C)`, the
    original's weights untouched, the same logits from the same settings, and a product that comes back from its files.
    """
    kind = "classes" if inputs.forget_classes else "rows"
    assert kind in method.kind.facts.requests, f"facts.requests has no {kind!r}: this request is not for the method"
    before = {name: tensor.clone() for name, tensor in inputs.classifier.state_dict().items()}
    made, again = (method.fit("entry", inputs, dict(settings or {}), None) for _ in range(2))
    assert isinstance(made, UnlearnedModel), f"fit returned {type(made).__name__}, not an UnlearnedModel"
    changed = [n for n, t in inputs.classifier.state_dict().items() if not torch.equal(before[n], t)]
    assert not changed, f"the original's weights were changed in place: {changed[:3]}"
    changes = method.kind.facts.changes
    assert (made.classifier is not None) == (changes == "weights"), f"facts.changes is {changes!r}, the product is not"
    z = torch.cat([inputs.z_forget[:20], inputs.z_retain[:20]])
    logits = made.logits(z)
    shape = (len(z), len(inputs.dataset.class_names))
    assert logits.shape == shape, f"logits have the shape {tuple(logits.shape)}, not {shape}"
    assert torch.isfinite(logits).all(), "logits are not finite"
    assert torch.equal(logits, again.logits(z)), "the same settings gave other logits: take randomness from a seed"
    with tempfile.TemporaryDirectory() as tmp:
        made.save(Path(tmp))
        write_manifest(Path(tmp), __name__)
        loaded = UnlearnedModel.load(tmp)
    assert torch.equal(loaded.logits(z), logits), "read back from its files, it answers otherwise"
    assert loaded.info == made.info, "info does not survive JSON: keep to text, numbers, lists and mappings"
    return made


def _fit_head(classifier: Any, dataset: Dataset, directory: Path) -> None:
    """Give `classifier` the head that fits its own features on training rows."""
    extract(classifier, dataset, directory / "first", directory / "work", ExtractionSettings(500, 65_536))
    train = np.flatnonzero(dataset.splits() == TRAIN)
    z, labels = torch.from_numpy(FeatureStore(directory / "first").z(train)), torch.from_numpy(dataset.labels()[train])
    head = SoftmaxHead(1e-6, tol=1e-6).fit(z, labels.long(), len(dataset.class_names)).head_
    with torch.no_grad():
        classifier.head.weight.copy_(head.weight)
        classifier.head.bias.copy_(head.bias)
