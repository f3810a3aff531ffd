"""The servable directory: one classifier with the unlearned head inside it, and what a request must look like.

    model.safetensors, model.json   the backbone and the head that ships
    map/                            only for a map that no linear head can absorb
    tokenizer.json                  only where texts go in
    serving.json                    shape of an image, class names
    manifest.json

The head it replaces is not in there: with a linear map, nothing can be taken out again to get the old classifier back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.models.checkpoint import load_classifier, save_classifier
from expunge.models.classifier import Classifier, ModelCard
from expunge.models.preprocess import Inputs
from expunge.system.errors import DataError
from expunge.system.files import digest_of, read_json, read_manifest, write_json, write_manifest

CONTRACT = "serving.json"
MAP = "map"
ANY = -1
BATCH = 256


@dataclass(frozen=True)
class Contract:
    """What goes in and what comes out.

    `shape`: of one image, `(h, w)` or `(h, w, c)`; -1 stands for any size. `()` where texts go in.
    `classes`: names of the columns of the answer, in order.
    `binary`: whether images with no pixel above 1 are normal here; elsewhere they are taken for a mistake.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    binary: bool = False

    @classmethod
    def of(cls, example: NDArray[np.uint8] | list[str], classes: Sequence[str], any_size: bool = False) -> Contract:
        """From example images `(n, h, w)` or `(n, h, w, c)`, uint8, or from texts. `any_size` leaves height and width
        open."""
        if isinstance(example, list):
            return cls((), tuple(classes))
        if example.dtype != np.uint8 or example.ndim not in (3, 4) or not len(example):
            raise ValueError(
                f"example images: {example.dtype} {example.shape}; expected uint8 (n, h, w) or (n, h, w, c)"
            )
        size = (ANY, ANY) if any_size else example.shape[1:3]
        return cls((*size, *example.shape[3:]), tuple(classes), bool(example.max() <= 1))

    @property
    def texts(self) -> bool:
        return self.shape == ()

    @property
    def takes(self) -> str:
        """What goes in, in a word or two."""
        return "texts" if self.texts else f"images {self.shape}"

    def check(self, inputs: object) -> NDArray[np.uint8] | list[str]:
        """`inputs` as a uint8 array or a list of texts that fits, or DataError saying what was expected."""
        return _texts(inputs) if self.texts else self._images(inputs)

    def _images(self, images: object) -> NDArray[np.uint8]:
        wanted = f"a uint8 array (n, {', '.join('any' if s == ANY else str(s) for s in self.shape)})"
        if not isinstance(images, np.ndarray):
            raise DataError(f"images are a {type(images).__name__}; expected {wanted}")
        if images.dtype != np.uint8:
            raise DataError(
                f"pixels are {images.dtype}; expected {wanted} of raw values 0 to 255, neither scaled nor normalised"
            )
        if images.ndim != 1 + len(self.shape) or any(
            s not in (ANY, given) for s, given in zip(self.shape, images.shape[1:], strict=True)
        ):
            raise DataError(f"images have shape {images.shape}; expected {wanted}")
        if 0 in images.shape[1:]:
            raise DataError(f"images have shape {images.shape}: no pixels; expected {wanted}")
        # A JSON request of pixels scaled to [0, 1] arrives as zeros and ones: the server casts before it asks us.
        if len(images) and not self.binary and images.max() <= 1:
            raise DataError("no pixel of the whole batch is above 1: images scaled to [0, 1]? Send raw values 0 to 255")
        return images


@dataclass(frozen=True)
class Servable:
    """A loaded servable directory."""

    classifier: Classifier
    map_: Callable[[Tensor], Tensor] | None
    contract: Contract

    @classmethod
    def load(cls, directory: Path | str) -> Servable:
        """Read and verify `directory`. Raises ManifestError or CheckpointError naming the file that is wrong."""
        directory = Path(directory)
        classifier = load_classifier(directory)
        contract = read_json(directory / CONTRACT)
        map_ = None
        if (directory / MAP).is_dir():
            from expunge.core.maps import load_map  # a folded head needs none of it

            map_ = load_map(directory / MAP)
        return cls(classifier, map_, Contract(tuple(contract["shape"]), tuple(contract["classes"]), contract["binary"]))

    def probabilities(self, inputs: object) -> NDArray[np.float32]:
        """Class probabilities float32 `(n, C)` of raw images, uint8 `(n, *contract.shape)`, or of n texts; n may be 0.

        Raises DataError for anything else. Worked through in batches of 256, without gradients.
        """
        raw = self.contract.check(inputs)
        out = np.empty((len(raw), len(self.contract.classes)), np.float32)
        for start in range(0, len(raw), BATCH):
            out[start : start + BATCH] = torch.softmax(self.logits(raw[start : start + BATCH]), dim=1).numpy()
        return out

    def logits(self, inputs: Inputs) -> Tensor:
        """Logits float32 `(n, C)` of one batch that is known to be good: uint8 images, of any sizes where it is a list,
        or texts."""
        with torch.inference_mode():
            z = self.classifier.features(inputs)
            logits: Tensor = self.classifier.head(self.map_(z) if self.map_ else z)
        return logits.float()


def _texts(inputs: object) -> list[str]:
    wanted = "expected a list or an array (n,) of texts"
    if isinstance(inputs, np.ndarray) and inputs.ndim == 1:
        inputs = inputs.tolist()
    if not isinstance(inputs, list):
        raise DataError(f"inputs are a {type(inputs).__name__}; {wanted}")
    for row, text in enumerate(inputs):
        if not isinstance(text, str):
            raise DataError(f"input {row} is a {type(text).__name__}; {wanted}")
    return inputs


def write_servable(directory: Path, model_dir: Path | str, unlearned_dir: Path | str, contract: Contract) -> ModelCard:
    """Fill the empty `directory` from a classifier's checkpoint and a method's output (head and map); return its card.

    An affine map is already folded into the method's head and is left out; any other is copied beside it.
    """
    from expunge.core.head import LinearHead
    from expunge.core.maps import AffineMap, load_map

    unlearned_dir = Path(unlearned_dir)
    classifier = load_classifier(model_dir)
    if len(contract.classes) != classifier.card.num_classes:
        raise ValueError(f"{len(contract.classes)} class names for a model of {classifier.card.num_classes} classes")
    head = LinearHead.load(unlearned_dir / "head.safetensors")
    classifier.set_head(head.weight, head.bias)
    save_classifier(directory, classifier)
    map_ = load_map(unlearned_dir)
    if not isinstance(map_, AffineMap):
        (directory / MAP).mkdir()
        map_.save(directory / MAP)
    write_json(directory / CONTRACT, asdict(contract))
    write_manifest(directory, "expunge.serving")
    return classifier.card


def servable_digest(directory: Path | str) -> str:
    """`sha256:...` of what is served: every file of a servable directory, checked against its manifest."""
    files = read_manifest(directory)["files"]
    return digest_of({name: entry["sha256"] for name, entry in files.items()})
