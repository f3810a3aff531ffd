"""Test that weight times what a layer reads is its output."""

from __future__ import annotations

import pytest
import torch
from efficientnet_lite_pytorch.utils import Conv2dStaticSamePadding
from torch import Tensor, nn

from expunge.finetune.layer_inputs import LayerInputs

LAYERS = {
    "stride and padding": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "dilation and groups": nn.Conv2d(4, 6, (2, 3), dilation=2, groups=2, bias=False),
    "padding by reflection": nn.Conv2d(4, 4, 3, padding="same", groups=4, padding_mode="reflect"),
    "padding to the same size": nn.Conv2d(4, 2, (2, 3), padding="same", dilation=2),
    "padding of its own": Conv2dStaticSamePadding(4, 4, 5, stride=2, groups=4, image_size=(9, 8)),
    "linear": nn.Linear(8, 3),
}


def seen(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, int]]:
    found: dict[str, tuple[Tensor, int]] = {}
    with torch.no_grad(), LayerInputs(model, lambda name, h, count: found.update({name: (h, count)})):
        model(x)
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_weight_times_input_is_the_output(name: str) -> None:
    layer = LAYERS[name].double()
    x = torch.randn(3, 4, 9, 8, generator=torch.Generator().manual_seed(0)).double()
    ((weight, (h, count)),) = seen(layer, x).items()
    assert weight == "weight" and count == 3
    with torch.no_grad():
        out = torch.einsum("gok,pgk->pgo", layer.weight.reshape(h.shape[1], -1, h.shape[-1]), h).flatten(1)
        expected = layer(x)
        expected = expected.movedim(1, -1) if isinstance(layer, nn.Conv2d) else expected
        if layer.bias is not None:
            out = out + layer.bias
    torch.testing.assert_close(out, expected.reshape(-1, expected.shape[-1]))


def test_every_layer_is_seen_in_the_order_of_the_calls() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))
    assert list(seen(model, torch.randn(2, 1, 4, 4))) == ["0.weight", "2.weight", "4.weight"]
    assert not seen(nn.Flatten(), torch.randn(2, 3))
