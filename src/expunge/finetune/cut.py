"""Activations at a cut inside the backbone, computed once and used in place of the inputs in every later request."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.models.classifier import Classifier
from expunge.models.cut_split import CutSplit
from expunge.models.cuts import split_at_cut
from expunge.models.preprocess import Inputs
from expunge.system.arrays import new_array
from expunge.system.errors import ConfigError, DataError
from expunge.system.progress import progress

# Images: (n, h, w, c), which becomes a channels-last batch when permuted; (n, t, c) for tokens, (n, c) for vectors.
# Texts: (n, t, c), where t is the length of the longest text; positions behind the end of a text are NaN.
Activations = NDArray[np.float16] | NDArray[np.float32]
OUTSIDE = float("nan")


def fetch_activations(
    classifier: Classifier,
    inputs: Inputs,
    cut: str,
    path: Path | None = None,
    *,
    dtype: str = "float16",
    batch_size: int = 500,
) -> Activations:
    """Return the activations of `inputs`, uint8 images (n, h, w[, c]) or texts, behind the module `cut`.

    They are computed in fp32. `dtype` is "float16" (half the space, relative rounding error about 5e-4) or "float32".
    With `path` the array is written there as `.npy` during the computation and returned memory-mapped, so that memory
    does not grow with the number of rows. Raises ConfigError for an unknown cut or dtype, DataError without inputs or
    where an activation is out of the range of the dtype.
    """
    split = split_at_cut(classifier, cut)
    if dtype not in ("float16", "float32"):
        raise ConfigError(f"activations must be stored as float16 or float32, got {dtype!r}")
    if not len(inputs):
        raise DataError("there are no images to compute activations of")
    return _fetch(split, inputs, path, np.dtype(dtype), batch_size)


@torch.no_grad()
def _fetch(split: CutSplit, inputs: Inputs, path: Path | None, dtype: np.dtype[Any], batch_size: int) -> Activations:
    n, cut, classifier = len(inputs), split.name, split.classifier
    device = classifier.head.weight.device
    longest = max(x.shape[1] for _, x in _batches(classifier, inputs, batch_size)) if split.texts else None
    out: Activations | None = None
    with progress(f"fetch at {cut}", n, "inputs") as advance:
        for start, x in _batches(classifier, inputs, batch_size):
            a = split.below(x.to(device))
            if split.texts:
                a = a.masked_fill(~(x >= 0).to(device).unsqueeze(-1), 0)
            block = _stored(a).cpu().numpy()
            with np.errstate(over="ignore"):
                block = block.astype(dtype)
            if not np.isfinite(block).all():
                raise DataError(
                    f"rows {start}..{start + len(a) - 1}: the activations at {cut} exceed the range of {dtype}; use "
                    "float32"
                )
            if out is None:
                shape = (n, longest or block.shape[1], *block.shape[2:]) if block.ndim > 2 else (n, block.shape[1])
                out = np.empty(shape, dtype) if path is None else new_array(path, dtype, shape)
            rows = slice(start, start + len(a))
            if split.texts:
                out[rows] = OUTSIDE
                inside = (x >= 0).cpu().numpy()
                block[~inside] = OUTSIDE
                out[rows, : block.shape[1]] = block
            else:
                out[rows] = block
            advance(len(a))
    assert out is not None
    return out


def _batches(classifier: Classifier, inputs: Inputs, size: int) -> Any:
    for start in range(0, len(inputs), size):
        yield start, classifier.preprocess(inputs[start : start + size])


def _stored(a: Tensor) -> Tensor:
    return (a.permute(0, 2, 3, 1) if a.ndim == 4 else a).contiguous()


def path_of(activations: Activations) -> Path | None:
    """Return the absolute path of the `.npy` file behind a memory map, None for activations in memory."""
    file = activations.filename if isinstance(activations, np.memmap) else None
    return Path(file).resolve() if file is not None and Path(file).suffix == ".npy" else None


@dataclass(frozen=True)
class CutBatch:
    """A batch of activations for `CutSplit.above`, fp32, and for texts a mask of the positions inside each text."""

    activations: Tensor
    inside: Tensor | None


def rows_of(activations: Activations, rows: Tensor) -> Tensor:
    """Return the activations of `rows` in the model's layout; feature maps are `(n, c, h, w)`, channels-last."""
    a = torch.from_numpy(activations[rows.numpy()])
    return a.permute(0, 3, 1, 2) if a.ndim == 4 else a


def batch_of(split: CutSplit, activations: Activations, rows: Tensor) -> CutBatch:
    """Return the activations of `rows` on the classifier's device; texts are cut to the longest among them."""
    a = rows_of(activations, rows).float().to(split.classifier.head.weight.device)
    if not split.texts:
        return CutBatch(a, None)
    inside = ~a[..., 0].isnan()
    t = max(int(inside.sum(1).max()), 1)
    return CutBatch(a[:, :t].nan_to_num(0.0), inside[:, :t])


def features_of(split: CutSplit, batch: CutBatch) -> Tensor:
    """Return the features `(n, d)` of a batch of activations."""
    return split.above(batch.activations, batch.inside)
