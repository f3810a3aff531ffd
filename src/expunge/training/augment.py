"""Augmentation of training images with torchvision's transforms, drawn anew for every image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from expunge.system.vision_imports import import_vision

AUGMENTATIONS = ("none", "flip-crop", "randaugment", "trivial")
Augment = Callable[[Tensor], Tensor]


def make_augment(name: str, height: int, width: int) -> Augment | None:
    """Return a function that augments uint8 images `(n, h, w)` or `(n, h, w, c)`, or None for "none".

    The augmented images have the same shape. "flip-crop" is a random crop after reflection padding by an eighth of the
    smaller side, and a horizontal flip with probability 1/2. "randaugment" (arXiv 1909.13719) and "trivial" (arXiv
    2103.10158) apply torchvision's operations of that name in addition. Random numbers come from torch's global
    generator. Raises ValueError for another name.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"augment must be one of {', '.join(AUGMENTATIONS)}, got {name!r}")
    if name == "none":
        return None
    v2 = import_vision("torchvision.transforms.v2")
    border = max(1, min(height, width) // 8)
    steps: list[Any] = [
        v2.RandomCrop((height, width), padding=border, padding_mode="reflect"),
        v2.RandomHorizontalFlip(),
    ]
    if name == "randaugment":
        steps.append(v2.RandAugment())
    if name == "trivial":
        steps.append(v2.TrivialAugmentWide())
    transform = v2.Compose(steps)

    def augment(images: Tensor) -> Tensor:
        flat = images.ndim == 3
        channels_first = (images[..., None] if flat else images).permute(0, 3, 1, 2)
        out = torch.stack([transform(one) for one in channels_first]).permute(0, 2, 3, 1)
        return out[..., 0].contiguous() if flat else out.contiguous()

    return augment
