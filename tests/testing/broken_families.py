"""Model families for the tests of `check_model`: one keeps the contract, and the others each break one promise."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from expunge.models.families import Expects, Family


class Mlp(nn.Module):
    """A network with flattened pixels as input, ten hidden units and a head.

    Subclasses override `before` and `behind` to break a promise of the contract.
    """

    def __init__(self, num_classes: int, pixels: int) -> None:
        super().__init__()
        self.first = nn.Linear(pixels, 10)
        self.head = nn.Linear(10, num_classes)
        self.register_buffer("passes", torch.zeros(1))

    def before(self, x: Tensor) -> Tensor:
        return x

    def behind(self, z: Tensor) -> Tensor:
        return z

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.behind(torch.relu(self.first(self.before(x).flatten(1)))))


def family(of: Callable[[int, int], nn.Module], **options: Any) -> Family:
    def make(_detail: str, num_classes: int, size: tuple[int, int], channels: int, _o: Mapping[str, Any]) -> nn.Module:
        return of(num_classes, size[0] * size[1] * channels)

    return Family(lambda _detail, shape, size: Expects(size or shape[:2], options=options), make)


class Noise(Mlp):
    def behind(self, z: Tensor) -> Tensor:
        return torch.nn.functional.dropout(z, 0.5, training=True)


def is_picture(x: Tensor) -> bool:
    """Return whether `x` holds pixels, which lie in [-1, 1], and not the noise that is used to find the head."""
    return bool(x.abs().max() <= 1)


class Dropout(Mlp):
    def before(self, x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x, 0.5, training=True) if is_picture(x) else x


class InPlace(Mlp):
    def before(self, x: Tensor) -> Tensor:
        return x.mul_(0.5) if is_picture(x) else x


class Counts(Mlp):
    def before(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x


class Batch(Mlp):
    def behind(self, z: Tensor) -> Tensor:
        return z - z.mean(0)


class NotFinite(Mlp):
    def before(self, x: Tensor) -> Tensor:
        return x * float("nan") if is_picture(x) else x


class Double(Mlp):
    def __init__(self, num_classes: int, pixels: int) -> None:
        super().__init__(num_classes, pixels)
        self.double()

    def before(self, x: Tensor) -> Tensor:
        return x.double()


class Frozen(Mlp):
    def __init__(self, num_classes: int, pixels: int) -> None:
        super().__init__(num_classes, pixels)
        self.first.weight.requires_grad_(False)


class Detached(Mlp):
    def behind(self, z: Tensor) -> Tensor:
        return z.detach()


class NoGrad(Mlp):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class AlwaysGrad(Mlp):
    @torch.enable_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

    @torch.enable_grad()
    def behind(self, z: Tensor) -> Tensor:
        return z + 0 * self.first.bias.sum()


class Unused(Mlp):
    def __init__(self, num_classes: int, pixels: int) -> None:
        super().__init__(num_classes, pixels)
        self.spare = nn.Linear(2, 2)


class Infinite(Mlp):
    """A network that takes the square root of zero, which has no finite gradient."""

    def behind(self, z: Tensor) -> Tensor:
        return (z * 0).abs().sqrt() + z


class RandomNumber(Mlp):
    """A network with a random number that is neither a parameter nor a buffer, so it is not saved."""

    def __init__(self, num_classes: int, pixels: int) -> None:
        super().__init__(num_classes, pixels)
        self.scale = 1 + float(torch.rand(()))

    def behind(self, z: Tensor) -> Tensor:
        return z * self.scale


class Loads(Mlp):
    """A network that counts in a buffer how often it was loaded, so that its files change."""

    def __init__(self, num_classes: int, pixels: int) -> None:
        super().__init__(num_classes, pixels)
        self.register_load_state_dict_post_hook(self.count)

    def count(self, *_: Any) -> None:
        self.passes += 1


def chance(num_classes: int, pixels: int) -> nn.Module:
    result = Mlp(num_classes, pixels)
    result.first.bias.data.fill_(random.random())
    return result


def always_the_same(num_classes: int, pixels: int) -> nn.Module:
    torch.manual_seed(0)
    return Mlp(num_classes, pixels)


class NoHead(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(super().forward(x), 1)


GOOD = family(Mlp)
NOISE, DROPOUT, IN_PLACE, COUNTS, BATCH = family(Noise), family(Dropout), family(InPlace), family(Counts), family(Batch)
NOT_FINITE, DOUBLE, FROZEN, DETACHED = family(NotFinite), family(Double), family(Frozen), family(Detached)
NO_GRAD, ALWAYS_GRAD, UNUSED, INFINITE = family(NoGrad), family(AlwaysGrad), family(Unused), family(Infinite)
RANDOM_NUMBER, LOADS, NO_HEAD = family(RandomNumber), family(Loads), family(NoHead)
CHANCE, SAME, THREE = family(chance), family(always_the_same), family(lambda _n, pixels: Mlp(3, pixels))
OPTIONS = family(Mlp, made_of={1, 2})
