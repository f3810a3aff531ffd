"""A compact ResNet without pre-activation for small images: widths 32, 64 and 128, with one residual block each.

`forward` consists of the stages at which cut-layer methods may cut: `stem`, `stage1`, `stage2`, `stage3`, followed by
average pooling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm and a skip connection; a `stride` of 2 halves height and width."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width_out)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or width_in != width_out:
            self.skip = nn.Sequential(nn.Conv2d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm2d(width_out))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x))


class ResNetSmall(nn.Module):
    """Maps float images `(n, channels, h, w)` to features `(n, 128)`; it has about 0.3 M parameters.

    `stem_stride` 2 reduces the computation to a quarter and costs little accuracy for images of at least 16 pixels;
    smaller ones need 1.
    """

    feature_dim = 128
    # In order of computation; a cut-layer method keeps the stages up to a cut and retrains those above.
    stages = ("stem", "stage1", "stage2", "stage3")

    def __init__(self, channels: int = 1, stem_stride: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 32, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.stage1 = Block(32, 32, 1)
        self.stage2 = Block(32, 64, 2)
        self.stage3 = Block(64, 128, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features `(n, 128)`."""
        return self.above(self.below(x, self.stages[0]), self.stages[0])

    def below(self, x: Tensor, cut: str) -> Tensor:
        """Return the activations `(n, c, h, w)` after the stage `cut`."""
        for name in self.stages[: self.stages.index(cut) + 1]:
            x = getattr(self, name)(x)
        return x

    def above(self, activations: Tensor, cut: str) -> Tensor:
        """Return features `(n, 128)` from the activations after the stage `cut`."""
        x = activations
        for name in self.stages[self.stages.index(cut) + 1 :]:
            x = getattr(self, name)(x)
        return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
