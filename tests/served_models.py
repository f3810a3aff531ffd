"""Write a tiny classifier, and the result of a method on it, for the tests of serving and tracking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.core.head import LinearHead
from expunge.core.maps import AffineMap, FeatureMap, MlpMap
from expunge.models.checkpoint import save_classifier
from expunge.models.classifier import Classifier
from expunge.models.zoo import build
from expunge.system.files import staged_dir, write_manifest

torch.set_num_threads(1)  # Tests run at the same time, and two thread pools on two cores slow each other down.

CLASSES = ("ankle boot", "bag", "coat", "dress")


def pictures(n: int, shape: tuple[int, ...] = (12, 10), seed: int = 0) -> NDArray[np.uint8]:
    """Return noise with a window whose position and brightness differ between pictures, uint8 `(n, *shape)`."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (n, *shape), dtype=np.uint8)
    for image in images:
        y, x = rng.integers(0, shape[0] - 4), rng.integers(0, shape[1] - 4)
        image[y : y + 6, x : x + 6] += rng.integers(0, 190, dtype=np.uint8)
    return images


def write_model(
    directory: Path, shape: tuple[int, int, int] = (12, 10, 1), architecture: str = "resnet-small"
) -> Classifier:
    classifier = build(architecture, len(CLASSES), shape, seed=1)
    # Random weights give nearly the same answer to every picture, so the head is scaled.
    with torch.no_grad():
        z = classifier.features(pictures(64, shape, seed=9))
        classifier.head.weight.div_(classifier.head(z).std(0)[:, None] / 2)
        classifier.head.bias.copy_(-classifier.head.weight @ z.mean(0))
    with staged_dir(directory) as tmp:
        save_classifier(tmp, classifier)
        write_manifest(tmp, "test")
    return classifier


def affine(dim: int) -> AffineMap:
    g = torch.Generator().manual_seed(2)
    return AffineMap(
        torch.eye(dim) + 0.002 * torch.randn(dim, dim, generator=g), 0.0005 * torch.randn(dim, generator=g)
    )


def mlp(dim: int) -> MlpMap:
    g = torch.Generator().manual_seed(3)
    weights = 0.03 * torch.randn(16, dim, generator=g), 0.03 * torch.randn(dim, 16, generator=g)
    return MlpMap(weights, (torch.zeros(16), torch.zeros(dim)), residual=True)


def write_unlearned(directory: Path, classifier: Classifier, map_: FeatureMap) -> None:
    """Write the result of a method as the fit stage does: an affine map is folded into the head."""
    head = LinearHead.of(classifier.head)
    with staged_dir(directory) as tmp:
        (map_.fold_into(head) if isinstance(map_, AffineMap) else head).save(tmp / "head.safetensors")
        map_.save(tmp)
        write_manifest(tmp, "test")


@torch.no_grad()
def evaluated(classifier: Classifier, map_: FeatureMap, inputs: NDArray[np.uint8] | list[str]) -> NDArray[np.float64]:
    """Return the probabilities softmax(W f(z) + b), computed row by row in float64."""
    w, b = classifier.head.weight.double(), classifier.head.bias.double()
    rows = []
    for i in range(len(inputs)):
        logits = w @ map_(classifier.features(inputs[i : i + 1]).double())[0] + b
        rows.append((logits - logits.max()).exp() / (logits - logits.max()).exp().sum())
    return torch.stack(rows).numpy()
