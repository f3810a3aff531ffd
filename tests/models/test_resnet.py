"""Tests of the small ResNet, against its blocks and stages computed one after the other."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from expunge.models.resnet import ResNetSmall
from expunge.models.zoo import build


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 33), (3, 8)])
def test_features_are_the_stages_in_order_and_their_mean(channels: int, size: int) -> None:
    torch.manual_seed(0)
    net = ResNetSmall(channels).eval()
    x = torch.randn(2, channels, size, size)
    with torch.no_grad():
        y = net.stage3(net.stage2(net.stage1(net.stem(x))))
        torch.testing.assert_close(net(x), y.mean((2, 3)))
    assert net(x).shape == (2, ResNetSmall.feature_dim)
    assert tuple(dict(net.named_children())) == net.stages


def test_a_block_is_two_convolutions_and_a_skip() -> None:
    torch.manual_seed(0)
    block = ResNetSmall().eval().stage2
    x = torch.randn(2, 32, 14, 14)
    y = block.norm2(
        F.conv2d(
            F.relu(block.norm1(F.conv2d(x, block.conv1.weight, stride=2, padding=1))), block.conv2.weight, padding=1
        )
    )
    skip = block.skip[1](F.conv2d(x, block.skip[0].weight, stride=2))
    torch.testing.assert_close(block(x), F.relu(y + skip))


@pytest.mark.parametrize(("size", "side"), [(28, 4), (16, 2), (8, 2)])
def test_the_stem_halves_large_pictures_only(size: int, side: int) -> None:
    net = build("resnet-small", 3, (size, size, 1)).backbone
    x = torch.zeros(1, 1, size, size)
    for name in net.stages:
        x = getattr(net, name)(x)
    assert x.shape == (1, 128, side, side)
