"""The servable directory: a classifier with its unlearned head, and the contract for requests.

    model.safetensors, model.json   backbone and shipped head
    map/                            only for a map that cannot be folded into a linear head
    tokenizer.json                  only for models that take texts
    serving.json                    image shape, class names
    manifest.json

The original head is not included: with a linear map, the old classifier cannot be recovered by removing a file.
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
ANY = -1  # in a shape: any height or width
BATCH = 256


@dataclass(frozen=True)
class Contract:
    """The contract for inputs and outputs.

    `shape`: shape of one image, `(h, w)` or `(h, w, c)`, with -1 for any size; `()` for texts.
    `classes`: class names in the order of the output columns.
    `binary`: whether batches without a pixel above 1 are valid; otherwise they are rejected as scaled images.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    binary: bool = False

    @classmethod
    def of(cls, example: NDArray[np.uint8] | list[str], classes: Sequence[str], any_size: bool = False) -> Contract:
        """Derive the contract from example images uint8 `(n, h, w)` or `(n, h, w, c)`, or from texts.

        With `any_size`, images of any height and width are valid. Raises ValueError for other examples.
        """
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
        """Whether the inputs are texts."""
        return self.shape == ()

    @property
    def takes(self) -> str:
        """A short description of the inputs."""
        return "texts" if self.texts else f"images {self.shape}"

    def check(self, inputs: object) -> NDArray[np.uint8] | list[str]:
        """Return `inputs` as a valid uint8 array or list of texts. Raises DataError, which says what was expected."""
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
        # The server casts JSON pixels to uint8 first, so images scaled to [0, 1] arrive here as zeros and ones.
        if len(images) and not self.binary and images.max() <= 1:
            raise DataError(
                "no pixel of the whole batch is above 1, as in images scaled to [0, 1]; send raw values 0 to 255"
            )
        return images


@dataclass(frozen=True)
class Servable:
    """A loaded servable directory."""

    classifier: Classifier
    map_: Callable[[Tensor], Tensor] | None
    contract: Contract

    @classmethod
    def load(cls, directory: Path | str) -> Servable:
        """Read and verify `directory`. Raises ManifestError or CheckpointError, which name the file at fault."""
        directory = Path(directory)
        classifier = load_classifier(directory)
        contract = read_json(directory / CONTRACT)
        map_ = None
        if (directory / MAP).is_dir():
            from expunge.core.maps import load_map  # not needed for a head with a folded map

            map_ = load_map(directory / MAP)
        return cls(classifier, map_, Contract(tuple(contract["shape"]), tuple(contract["classes"]), contract["binary"]))

    def probabilities(self, inputs: object) -> NDArray[np.float32]:
        """Return class probabilities float32 `(n, C)` of raw images uint8 `(n, *contract.shape)`, or of n texts.

        n may be 0. The inputs are processed in batches of 256, without gradients. Raises DataError for other inputs.
        """
        raw = self.contract.check(inputs)
        out = np.empty((len(raw), len(self.contract.classes)), np.float32)
        for start in range(0, len(raw), BATCH):
            out[start : start + BATCH] = torch.softmax(self.logits(raw[start : start + BATCH]), dim=1).numpy()
        return out

    def logits(self, inputs: Inputs) -> Tensor:
        """Return logits float32 `(n, C)` of one batch, which is not checked.

        The batch holds uint8 images, which come in a list if their sizes vary, or texts.
        """
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
    """Write a servable to the empty `directory` from a classifier's checkpoint and a method's output (head and map).

    An affine map is already folded into the method's head and is left out; any other map is stored in `map/`. Returns
    the model card. Raises ValueError if the number of class names is not that of the model's classes.
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
    """Return `sha256:...` over all files of a servable directory, after checking them against its manifest."""
    files = read_manifest(directory)["files"]
    return digest_of({name: entry["sha256"] for name, entry in files.items()})
