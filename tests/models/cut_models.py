"""Networks that are hard to cut: with branches, further inputs above the cut, or weights that are used twice."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.left = nn.Conv2d(8, 8, 3, 1, 1)
        self.right = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.middle = nn.Conv2d(8, 8, 3, 1, 1)
        self.last = nn.Conv2d(8, 8, 3, 1, 1)
        self.scale = nn.Parameter(torch.full((1, 8, 1, 1), 1.5))
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, num_classes)

    def pooled(self, x: Tensor) -> Tensor:
        return self.head(self.drop(F.relu(x).mean((2, 3))))


class Branching(Net):
    """Has control flow that depends on shapes, two branches, and a parameter outside of any layer."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = F.relu(self.left(a)) * self.scale if a.shape[-1] > 2 else a
        return self.pooled(self.last(self.norm(b + self.right(a))))


class Side(Net):
    """Reads the input again above the cut."""

    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(self.last(self.middle(self.first(x))) + x.mean((1, 2, 3), keepdim=True))


class Masked(Net):
    """Passes a mask without a gradient over the cut."""

    def forward(self, x: Tensor) -> Tensor:
        mask = (x.mean((1, 2, 3), keepdim=True) > 0).float()
        return self.pooled(self.last(self.middle(self.first(x))) * mask)


class Recurrent(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.cell = nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        for _ in range(3):
            a = F.relu(self.cell(a))
        return self.pooled(a)


class Tied(Net):
    """Uses the weights of the first layer again above the cut."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.last(self.first(x))
        return self.pooled(F.conv_transpose2d(a, self.first.weight).mean(1, keepdim=True) + self.scale)


def branching(num_classes: int) -> nn.Module:
    return Branching(num_classes)


def side(num_classes: int) -> nn.Module:
    return Side(num_classes)


def masked(num_classes: int) -> nn.Module:
    return Masked(num_classes)


def recurrent(num_classes: int) -> nn.Module:
    return Recurrent(num_classes)


def tied(num_classes: int) -> nn.Module:
    return Tied(num_classes)
