"""Classifiers of small images that papers commonly use, for `model.name: expunge.models.published:NAME`.

These are torchvision's ResNet-18 and -34 with a 3 x 3 stem of stride 1 and no max-pooling (He et al. 2016, as commonly
adapted to CIFAR), and the WRN-28-10 of Zagoruyko and Komodakis 2016. Their input has three channels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.system.vision_imports import import_vision


def resnet18(num_classes: int) -> nn.Module:
    """ResNet-18: 512 features; 11,173,962 parameters for ten classes. Raises ConfigError without torchvision."""
    return _small_stem("resnet18", num_classes)


def resnet34(num_classes: int) -> nn.Module:
    """ResNet-34: 512 features; 21,282,122 parameters for ten classes. Raises ConfigError without torchvision."""
    return _small_stem("resnet34", num_classes)


def wrn_28_10(num_classes: int) -> nn.Module:
    """WRN-28-10: 640 features; 36,479,194 parameters for ten classes."""
    return WideResNet(28, 10, num_classes)


def _small_stem(name: str, num_classes: int) -> nn.Module:
    model: nn.Module = import_vision("torchvision.models").get_model(name, weights=None, num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as in torchvision's other layers
    model.maxpool = nn.Identity()
    return model


class WideBlock(nn.Module):
    """Batch norm, ReLU and a 3 x 3 convolution, twice, with a skip connection.

    If the width changes, the skip is a 1 x 1 convolution of the input after the first batch norm and ReLU.
    """

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(width_in, width_out, 1, stride, bias=False) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output `(n, width, h, w)`."""
        y = F.relu(self.norm1(x))
        skip = x if self.skip is None else self.skip(y)
        out: Tensor = self.conv2(F.relu(self.norm2(self.conv1(y)))) + skip
        return out


class WideResNet(nn.Module):
    """Maps `(n, 3, h, w)` to logits `(n, num_classes)`.

    `depth` is 6 k + 4 for k blocks per stage, and the widths are 16, 32 and 64 times `factor`.
    """

    def __init__(self, depth: int, factor: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        widths = [16, 16 * factor, 32 * factor, 64 * factor]
        stages = []
        for i, (width_in, width_out) in enumerate(pairwise(widths)):
            layers = [WideBlock(width_in, width_out, 1 if i == 0 else 2)]
            layers += [WideBlock(width_out, width_out, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*layers))
        self.stage1, self.stage2, self.stage3 = stages
        self.norm = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `(n, num_classes)`."""
        x = F.relu(self.norm(self.stage3(self.stage2(self.stage1(self.stem(x))))))
        logits: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits
