"""Activations at a cut inside the backbone: fetched once, they stand for the pictures in every later request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.models.classifier import Classifier
from expunge.system.errors import ConfigError, DataError
from expunge.system.progress import progress

# Rows (n, h, w, c): a batch of rows is one block of memory, and permuted it is channels-last.
Activations = NDArray[np.float16] | NDArray[np.float32]


def cuts(classifier: Classifier) -> tuple[str, ...]:
    """Names of the stages after which `classifier` can be cut, the deepest cut (nearest the pixels) first.

    A backbone can be cut if it has `stages`, `below(x, cut)` and `above(activations, cut)`, as ResNetSmall has.
    Raises ConfigError for any other.
    """
    backbone = classifier.backbone
    if not all(hasattr(backbone, name) for name in ("stages", "below", "above")):
        raise ConfigError(
            f"{classifier.card.name}: {type(backbone).__name__} names no stages to cut at; "
            "use resnet-small, or give the backbone `stages`, `below` and `above`"
        )
    return _stages(backbone)[:-1]


def check_cut(classifier: Classifier, cut: str) -> None:
    """Raise ConfigError unless `classifier` can be cut after the stage `cut`, ValueError unless it is in eval mode."""
    if classifier.training:
        raise ValueError("the classifier is in train mode, where activations depend on the batch; call eval() first")
    known = cuts(classifier)
    if cut not in known:
        raise ConfigError(f"{classifier.card.name}: no cut {cut!r}; known: {', '.join(known)}")


def layers_above(classifier: Classifier, cut: str) -> list[nn.Module]:
    """The modules above `cut`, the head last. Raises ConfigError for an unknown cut."""
    check_cut(classifier, cut)
    stages = _stages(classifier.backbone)
    return [getattr(classifier.backbone, name) for name in stages[stages.index(cut) + 1 :]] + [classifier.head]


def fetch_activations(
    classifier: Classifier,
    images: NDArray[np.uint8],
    cut: str,
    path: Path | None = None,
    *,
    dtype: str = "float16",
    batch_size: int = 500,
) -> Activations:
    """Activations `(n, h, w, c)` of uint8 `images` (n, h, w[, c]) behind the stage `cut`, computed in fp32.

    `dtype`: "float16" (half the space; rounding about 5e-4 of a value) or "float32". With `path` the array is written
    there as `.npy` while it is made and returned memory-mapped, so that memory does not grow with rows.
    Raises ConfigError for an unknown cut, DataError where an activation does not fit the type.
    """
    check_cut(classifier, cut)
    if dtype not in ("float16", "float32"):
        raise ConfigError(f"activations as {dtype!r}: one of float16, float32")
    if not len(images):
        raise DataError("no images, so no activations to fetch")
    return _fetch(classifier, images, cut, path, np.dtype(dtype), batch_size)


@torch.no_grad()
def _fetch(
    classifier: Classifier, images: NDArray[np.uint8], cut: str, path: Path | None, dtype: np.dtype, batch_size: int
) -> Activations:
    out: Activations | None = None
    device = classifier.head.weight.device
    with progress(f"fetch at {cut}", len(images), "images") as advance:
        for start in range(0, len(images), batch_size):
            x = classifier.preprocess(images[start : start + batch_size]).to(device)
            a = below(classifier.backbone, x, cut).permute(0, 2, 3, 1).contiguous().cpu().numpy()
            with np.errstate(over="ignore"):
                block = a.astype(dtype)
            if not np.isfinite(block).all():
                raise DataError(
                    f"rows {start}..{start + len(a) - 1}: activations at {cut} do not fit {dtype}; use float32"
                )
            if out is None:
                shape = (len(images), *a.shape[1:])
                out = np.empty(shape, dtype) if path is None else np.lib.format.open_memmap(path, "w+", dtype, shape)
            out[start : start + len(a)] = block
            advance(len(a))
    assert out is not None
    return out


def rows_of(activations: Activations, rows: Tensor) -> Tensor:
    """The activations of `rows`, `(n, c, h, w)` in channels-last order."""
    return torch.from_numpy(activations[rows.numpy()]).permute(0, 3, 1, 2)


def _stages(backbone: nn.Module) -> tuple[str, ...]:
    return tuple(backbone.stages)  # type: ignore[arg-type]


def below(backbone: nn.Module, x: Tensor, cut: str) -> Tensor:
    a: Tensor = backbone.below(x, cut)  # type: ignore[operator]
    return a


def above(backbone: nn.Module, activations: Tensor, cut: str) -> Tensor:
    z: Tensor = backbone.above(activations, cut)  # type: ignore[operator]
    return z
