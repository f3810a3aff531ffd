"""Models of the kinds that users bring: some can be used, others must be refused."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Deep(nn.Module):
    """Has a head of two layers with dropout between them, and a linear layer that is never the last one."""

    def __init__(self, num_classes: int, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2)
        self.gate = nn.Linear(6, num_classes)
        self.classifier = nn.Sequential(
            nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, num_classes, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.relu(self.conv(x)).mean((2, 3))
        return self.classifier(pooled * torch.sigmoid(self.gate(pooled).mean(1, keepdim=True)))


class Scaled(Deep):
    """Scales the output of the last linear layer, which is therefore no head."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class PerPatch(nn.Module):
    """Applies the linear layer at every position and averages the positions afterwards."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(2).transpose(1, 2)).mean(1)


def deep(num_classes: int) -> nn.Module:
    return Deep(num_classes)


def without_bias(num_classes: int) -> nn.Module:
    return Deep(num_classes, bias=False)


def scaled(num_classes: int) -> nn.Module:
    return Scaled(num_classes)


def per_patch(num_classes: int) -> nn.Module:
    return PerPatch(num_classes)


def stubborn(num_classes: int) -> nn.Module:
    return Deep(7)


def no_module(num_classes: int) -> int:
    return num_classes
