"""Preprocess stored pixels for a backbone; training, extraction and serving use the same code."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from expunge.system.errors import DataError

Images = NDArray[np.uint8] | Tensor | Sequence[NDArray[np.uint8]]
Inputs = Images | Sequence[str] | NDArray[np.int32]  # images, texts, or token ids of texts

INTERPOLATIONS = ("bilinear", "bicubic")
# The luma weights of ITU-R BT.601, with which Pillow converts RGB to greyscale.
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Preprocess:
    """The input of a backbone: image size, channels, and the mean and standard deviation of pixels scaled to [0, 1].

    Images of another size are resized to `(height, width)` without cropping, with an antialiased filter. Greyscale is
    repeated to three channels, and RGB becomes greyscale by luma. Raises ValueError for invalid values.
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if min(self.height, self.width, self.channels) < 1:
            raise ValueError(
                f"height, width and channels must be at least 1, got {self.height} x {self.width} x {self.channels}"
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise ValueError(
                f"mean and std need one value per channel ({self.channels}), and std must be above 0, got "
                f"{self.mean} and {self.std}"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")

    def __call__(self, images: Inputs) -> Tensor:
        """Return float32 `(n, channels, height, width)` in channels-last memory format, on the device of `images`.

        `images` is uint8 `(n, h, w)` or `(n, h, w, c)`, or a sequence of `(h, w)` or `(h, w, c)` arrays of any sizes.
        Raises DataError for another type or shape, and for a number of channels that cannot be converted.
        """
        if isinstance(images, np.ndarray | Tensor):
            return self._batch(_as_batch(images, "images"))
        pictures: list[Any] = list(images)
        sizes: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, image in enumerate(pictures):
            if isinstance(image, str) or image.ndim not in (2, 3):
                given = "is a text" if isinstance(image, str) else f"has shape {tuple(image.shape)}"
                raise DataError(f"image {i} {given}; expected (h, w) or (h, w, c)")
            sizes[tuple(image.shape)].append(i)
        out = torch.empty(len(pictures), self.channels, self.height, self.width, memory_format=torch.channels_last)
        for rows in sizes.values():
            out[rows] = self._batch(_as_batch(np.stack([pictures[i] for i in rows]), f"image {rows[0]}"))
        return out

    def _batch(self, x: Tensor) -> Tensor:
        """Preprocess a batch `x`, uint8 `(n, h, w, c)`."""
        x = self._with_channels(x.permute(0, 3, 1, 2).float())
        if x.shape[2:] != (self.height, self.width):
            x = F.interpolate(
                x, (self.height, self.width), mode=self.interpolation, antialias=True, align_corners=False
            )
            if self.interpolation == "bicubic":
                x = x.clamp(0, 255)  # bicubic interpolation overshoots at edges
        mean, std = (x.new_tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return x.div(255 * std).sub_(mean / std).contiguous(memory_format=torch.channels_last)

    def _with_channels(self, x: Tensor) -> Tensor:
        given = x.shape[1]
        if given == self.channels:
            return x
        if given == 1:
            return x.expand(-1, self.channels, -1, -1)
        if given == 3 and self.channels == 1:
            return (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        raise DataError(
            f"images have {given} channels, but the model takes {self.channels}; convert them to grey or RGB"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preprocess:
        """Return the preprocessing with these fields."""
        return cls(**value)


def _as_batch(images: NDArray[Any] | Tensor, name: str) -> Tensor:
    if isinstance(images, np.ndarray):
        # Arrow's zero-copy arrays are read-only, and torch warns about read-only arrays.
        images = torch.from_numpy(images if images.flags.writeable else images.copy())
    if images.dtype != torch.uint8:
        raise DataError(
            f"{name}: pixels have the type {str(images.dtype).removeprefix('torch.')}, but uint8 in 0..255 is needed"
        )
    if images.ndim == 3:
        images = images.unsqueeze(-1)
    if images.ndim != 4 or (images.numel() == 0 and len(images)):
        raise DataError(f"{name}: has the shape {tuple(images.shape)}, but (n, h, w) or (n, h, w, c) is needed")
    return images
