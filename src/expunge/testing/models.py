"""Contract test for model families of other packages."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from expunge.models.checkpoint import load_classifier, save_classifier
from expunge.models.classifier import Classifier
from expunge.models.families import Shape, family_of
from expunge.models.zoo import build
from expunge.system.files import write_manifest
from expunge.testing.promises import contents, differing, other_chance, promised

IMAGES, CLASSES = 6, 3
TOLERANCE = 1e-4  # of logits; allows for rounding when sums are taken in another order


def check_model(name: str, image_shape: Shape = (16, 16, 1)) -> Classifier:
    """Build the model `name` for images of `image_shape` (h, w, c), check the contract, and return the classifier.

    `name` is written as in `model.name`. The package must be installed, since a checkpoint finds its architecture by
    the name alone. Raises AssertionError if the model has no linear head at which it can be cut; if logits are not
    finite float32 `(n, C)`; if the same seed gives different weights or different seeds the same; if a pass in
    evaluation mode changes weights or inputs, or two passes give different logits; if the logits of a row depend on the
    other rows; if a parameter has no gradient in training, or outputs carry one under `torch.no_grad`; and if a
    checkpoint does not reproduce the same bytes and logits.
    """
    with promised(f"{name} cannot be built"):
        family, detail = family_of(name)
        brings = family.expects(detail, image_shape, None).weights is not None
        with other_chance(1):
            classifier = build(name, CLASSES, image_shape, seed=0)
        with other_chance(2):
            again, other = build(name, CLASSES, image_shape, seed=0), build(name, CLASSES, image_shape, seed=1)
    weights = [c.state_dict() for c in (classifier, again, other)]
    assert not _changed(weights[0], weights[1]), "the same seed gave other weights: draw them from torch's generator"
    random_weights = brings or _changed(weights[0], weights[2])
    assert random_weights, "another seed gave the same weights: draw them from torch's generator, and do not seed it"
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, *image_shape), dtype=torch.uint8, generator=generator)
    with promised(f"{name} fails in evaluation mode"):
        _check_eval(classifier, images)
    with promised(f"{name} fails in training mode"):
        _check_training(again, images)
    with promised(f"{name} cannot be built for {CLASSES + 2} classes"):
        wider = build(name, CLASSES + 2, image_shape, seed=0)(images)
    assert wider.shape == (IMAGES, CLASSES + 2), f"for {CLASSES + 2} classes logits have the shape {tuple(wider.shape)}"
    _check_files(classifier, images)
    return classifier


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that differ or exist on one side only."""
    return [n for n in {**before, **after} if n not in before or n not in after or not torch.equal(before[n], after[n])]


def _check_eval(classifier: Classifier, images: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    pixels = classifier.preprocess(images)
    given = pixels.clone()
    with torch.no_grad():
        z, logits, again = classifier.features(images), classifier(images), classifier(pixels)
    assert logits.shape == (IMAGES, CLASSES), f"logits have the shape {tuple(logits.shape)}, not {(IMAGES, CLASSES)}"
    wanted = (IMAGES, classifier.card.feature_dim)
    assert z.shape == wanted, f"features have the shape {tuple(z.shape)}, not {wanted}"
    for what, tensor in (("features", z), ("logits", logits)):
        assert tensor.dtype == torch.float32, f"{what} are {tensor.dtype}, not float32"
        assert torch.isfinite(tensor).all(), f"{what} are not finite"
        assert not tensor.requires_grad, f"{what} carry a gradient under torch.no_grad"
    assert torch.equal(logits, again), (
        "two passes in evaluation mode gave different logits: dropout or noise is left on"
    )
    assert torch.equal(pixels, given), "a pass changes its input in place"
    changed = _changed(before, classifier.state_dict())
    assert not changed, f"a pass in evaluation mode changes {', '.join(changed[:3])}"
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        moved = classifier(images[order])
        alone = torch.cat([classifier(images[i : i + 1]) for i in range(IMAGES)])
    beside = torch.allclose(moved, logits[order], atol=TOLERANCE) and torch.allclose(alone, logits, atol=TOLERANCE)
    assert beside, "the logits of a row depend on the rows beside it"


def _check_training(classifier: Classifier, images: Tensor) -> None:
    frozen = [name for name, p in classifier.named_parameters() if not p.requires_grad]
    assert not frozen, f"parameters that ask for no gradient: {', '.join(frozen[:3])}; make them buffers"
    classifier.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        logits = classifier(images)
    torch.nn.functional.cross_entropy(logits, torch.arange(IMAGES) % CLASSES).backward()  # type: ignore[no-untyped-call]
    without = [name for name, p in classifier.named_parameters() if p.grad is None]
    assert not without, f"parameters without a gradient in training: {', '.join(without[:3])}"
    odd = [name for name, p in classifier.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    assert not odd, f"gradients that are not finite: {', '.join(odd[:3])}"


def _check_files(classifier: Classifier, images: Tensor) -> None:
    with tempfile.TemporaryDirectory() as tmp:
        places = [Path(tmp) / "first", Path(tmp) / "second"]
        for place in places:
            place.mkdir()
        with promised("the model cannot be saved and loaded"):
            save_classifier(places[0], classifier)
            write_manifest(places[0], __name__)
            loaded = load_classifier(places[0])
            save_classifier(places[1], loaded)
            write_manifest(places[1], __name__)
        other = differing(*(contents(place) for place in places))
        options = json.loads((places[0] / "model.json").read_text())["card"]["options"]
    assert not other, f"saved again after loading, the files differ in {', '.join(other)}; options are {options}"
    with torch.no_grad():
        assert torch.equal(loaded(images), classifier(images)), "loaded from its files, the model gives other logits"
