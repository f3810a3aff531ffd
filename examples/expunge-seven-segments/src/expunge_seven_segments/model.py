"""A model family: one convolution and one hidden layer, as wide as `segment-net:WIDTH` says, 32 by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from expunge.models.families import Expects, Family, Shape, Size
from expunge.system.errors import ConfigError


def expects(detail: str, image_shape: Shape, size: Size | None) -> Expects:
    """Pictures keep their size, unless model.image_size says otherwise; mean and deviation are 0.5."""
    if detail and not (detail.isdecimal() and 1 <= int(detail) <= 4096):
        raise ConfigError(f"model.name: segment-net:{detail}; write segment-net or segment-net:WIDTH, 1 to 4096")
    return Expects(size or image_shape[:2])


def make(detail: str, num_classes: int, size: Size, channels: int, options: Mapping[str, Any]) -> nn.Module:
    """Weights are drawn from torch's generator, which Expunge seeds before; the last layer is linear: the head."""
    width = int(detail or 32)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d((6, 4)),
        nn.Flatten(),
        nn.Linear(8 * 6 * 4, width),
        nn.ReLU(),
        nn.Linear(width, num_classes),
    )


FAMILY = Family(expects, make)
