"""Export a classifier to one file that can be served without this package: raw uint8 images in, logits out.

The formats are `.pt2` (torch.export) and `.onnx` (any ONNX runtime). Both contain the class names. A file is read back
and compared with the servable before it is kept.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.models.tokens import Tokens
from expunge.serving.servable import ANY, Servable
from expunge.system.errors import CheckpointError, ExpungeError

TOLERANCE = 1e-4  # on logits, relative to the largest; kernels differ in the order of summation
BATCHES = (1, 2, 5)  # sizes that are checked; the program is traced with 2
FACTS = "expunge.json"
OPSET = 20

Logits = Callable[[NDArray[np.uint8]], NDArray[Any]]


class Exportable(nn.Module):
    """Preprocessing, backbone, map and head as one module: uint8 `(n, *shape)` -> float32 `(n, C)`."""

    def __init__(self, servable: Servable) -> None:
        super().__init__()
        self.classifier = servable.classifier.eval()
        self.map_ = servable.map_

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(n, C)` of images `(n, *shape)` uint8."""
        z = self.classifier.features(images)
        logits: Tensor = self.classifier.head(self.map_(z) if self.map_ else z)
        return logits.float()


def export_torch(servable: Servable, path: Path, facts: Mapping[str, str]) -> float:
    """Write `path` (.pt2) and return the largest difference of a logit, relative to the largest logit.

    `facts`: stored in the file besides classes and shape. Raises CheckpointError, without writing `path`, if the
    architecture cannot be exported or if the file, read back, gives different logits.
    """

    def write(target: Path) -> None:
        program = _program(servable)
        program.example_inputs = None  # the only part of the archive that would be pickled
        torch.export.save(program, target, extra_files={FACTS: _facts(servable, facts)})

    def read(target: Path) -> Logits:
        module = torch.export.load(target).module()
        return lambda images: module(torch.from_numpy(images)).numpy()

    return _checked(servable, path, ".pt2", write, read)


def export_onnx(servable: Servable, path: Path, facts: Mapping[str, str]) -> float:
    """Do the same as `export_torch` for an ONNX model, which is checked in onnxruntime.

    Raises ExpungeError without the extra `export`.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx translates with it
    except ImportError as e:
        raise ExpungeError(f"ONNX needs the package {e.name!r}; run pip install 'expunge[export]'") from None

    def write(target: Path) -> None:
        program = torch.onnx.export(
            _program(servable), input_names=["images"], output_names=["logits"], opset_version=OPSET, verbose=False
        )
        assert program is not None
        model = program.model_proto
        entry = model.metadata_props.add()
        entry.key, entry.value = FACTS, _facts(servable, facts)
        onnx.checker.check_model(model, full_check=True)
        target.write_bytes(model.SerializeToString(deterministic=True))

    def read(target: Path) -> Logits:
        session = onnxruntime.InferenceSession(target.read_bytes(), providers=["CPUExecutionProvider"])
        return lambda images: session.run(["logits"], {"images": images})[0]

    return _checked(servable, path, ".onnx", write, read)


def _program(servable: Servable) -> Any:
    """Return the exported program, with a dynamic batch size."""
    example = torch.from_numpy(_images(_shape(servable), 2))
    module = Exportable(servable).requires_grad_(False)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("n")},))
    program.graph.eliminate_dead_code()  # shards replace a part of the public network, which is then unused
    program.graph_module.recompile()
    return program


def _shape(servable: Servable) -> tuple[int, ...]:
    """Return the shape of an image.

    If the servable takes any size, the exported file takes the backbone's own, and its clients must resize. Raises
    ExpungeError for a model that takes texts.
    """
    preprocess, shape = servable.classifier.preprocess, servable.contract.shape
    if isinstance(preprocess, Tokens):
        raise ExpungeError(
            "a model that reads texts cannot be written as one file, because its tokenizer is no tensor program; serve "
            "the version instead"
        )
    own = (preprocess.height, preprocess.width)
    return tuple(own[i] if s == ANY else s for i, s in enumerate(shape))


def _checked(
    servable: Servable, path: Path, suffix: str, write: Callable[[Path], None], read: Callable[[Path], Logits]
) -> float:
    if path.suffix != suffix:
        raise ExpungeError(f"{path}: a file of this format ends in {suffix}; change its name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as tmp:
        target = Path(tmp) / path.name
        try:
            write(target)
        except Exception as e:  # the passes of the exporters raise many types
            first = str(e).strip().split("\n", 1)[0]
            name = servable.classifier.card.name
            raise CheckpointError(f"{path}: {name!r} cannot be exported ({type(e).__name__}: {first})") from e
        difference = _difference(servable, read(target))
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"{path}: read back, its logits differ by {difference:.1e} of the largest, allowed {TOLERANCE:g}; "
                "nothing was written"
            )
        os.replace(target, path)
    return difference


def _difference(servable: Servable, exported: Logits) -> float:
    """Return the largest difference of a logit relative to the largest logit; NaN if shapes differ.

    Batches of sizes other than the traced one are included.
    """
    worst = 0.0
    for n in BATCHES:
        images = _images(_shape(servable), n)
        wanted, given = servable.logits(images).numpy(), exported(images)
        if given.shape != wanted.shape:
            return float("nan")
        worst = max(worst, float(np.abs(given - wanted).max() / np.abs(wanted).max()))
    return worst


def _images(shape: tuple[int, ...], n: int) -> NDArray[np.uint8]:
    """Return `n` random images uint8 `(n, *shape)`.

    They are coarse noise in 4 x 4 patches plus fine noise, so that they vary at more than one scale.
    """
    rng = np.random.default_rng(n)
    coarse = rng.integers(0, 200, (n, *(-(-s // 4) if i < 2 else s for i, s in enumerate(shape))))
    fine = rng.integers(0, 56, (n, *shape))  # the sum is at most 199 + 55, which fits uint8
    return (coarse.repeat(4, 1).repeat(4, 2)[:, : shape[0], : shape[1]] + fine).astype(np.uint8)


def _facts(servable: Servable, facts: Mapping[str, str]) -> str:
    return json.dumps({"classes": servable.contract.classes, "image_shape": _shape(servable), **facts}, sort_keys=True)
