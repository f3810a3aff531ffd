"""Features from intermediate layers: the outputs of named modules of a backbone, pooled and concatenated."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expunge.system.errors import ConfigError

PENULTIMATE = "penultimate"  # the output of the backbone, which is the input of the head


class Tap:
    """A forward hook that stores the last output of its module. It is an object, so that copies of a model copy it."""

    def __init__(self) -> None:
        self.out: Any = None

    def __call__(self, _module: nn.Module, _given: object, out: Any) -> None:
        """Store the output of the module."""
        self.out = out


class Layers(nn.Module):
    """Computes `x -> z (n, d)`: the outputs of the modules `names` of `model`, each pooled to a vector, concatenated.

    Feature maps are averaged over space, tokens over positions. For token ids (int64, negative after the end of a
    text), only positions inside the text count. PENULTIMATE is the output of the model. `example`, an input of the
    model, determines which axes of an output are spatial. Raises ConfigError for an unknown module, and for an output
    that is not one vector, sequence or map per input.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], example: Tensor) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        modules = dict(model.named_modules())
        self.taps = {name: Tap() for name in names if name != PENULTIMATE}
        for name, tap in self.taps.items():
            if not name or name not in modules:
                close = difflib.get_close_matches(name, modules, n=3, cutoff=0.4) or list(modules)[1:6]
                raise ConfigError(
                    f"features.layers: the model has no module {name!r}; similar modules: {', '.join(close)}; "
                    f"{PENULTIMATE} is the input of the head"
                )
            modules[name].register_forward_hook(tap)
        self.space_last: dict[str, bool] = {}
        with torch.no_grad():
            model.eval()(example)
        for name, tap in self.taps.items():
            out = _first(tap.out)
            if out is None or out.ndim not in (2, 3, 4) or len(out) != len(example):
                shape = "no tensor" if out is None else f"shape {tuple(out.shape)}"
                raise ConfigError(
                    f"features.layers: {name!r} returns {shape}, but one vector, row or map per input is needed"
                )
            self.space_last[name] = out.ndim == 4 and not _channels_last(out, example)
            tap.out = None

    def forward(self, x: Tensor) -> Tensor:
        """Return z `(n, d)` of a batch; the stored outputs of the modules are released."""
        inside = None if x.is_floating_point() else x >= 0
        own = self.model(x)
        parts = []
        for name in self.names:
            out: Any = own if name == PENULTIMATE else _first(self.taps[name].out)
            parts.append(_pooled(out, inside, self.space_last.get(name, False)))
        for tap in self.taps.values():
            tap.out = None
        return torch.cat(parts, dim=1)


def masked_mean(hidden: Tensor, inside: Tensor) -> Tensor:
    """Return the mean `(n, c)` of `hidden (n, t, c)` over positions where `inside (n, t)` is true; 0 if none is."""
    weight = inside.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def _pooled(out: Tensor, inside: Tensor | None, space_last: bool) -> Tensor:
    if out.ndim == 4:
        return out.mean((2, 3) if space_last else (1, 2))
    if out.ndim == 3:
        return masked_mean(out, inside) if inside is not None else out.mean(1)
    return out


def _channels_last(out: Tensor, example: Tensor) -> bool:
    """Whether a map is `(n, h, w, c)`, as in Swin: axes 1 and 2 have the aspect ratio of the image, 2 and 3 do not."""
    height, width = example.shape[2:]

    def like(h: int, w: int) -> bool:
        return abs(h * width - w * height) < max(height, width)

    return like(out.shape[1], out.shape[2]) and not like(out.shape[2], out.shape[3])


def _first(out: Any) -> Tensor | None:
    """Return the first tensor of a layer's output, since layers of transformers return tuples or mappings."""
    if isinstance(out, dict):
        out = next(iter(out.values()), None)
    while isinstance(out, tuple | list) and out:
        out = out[0]
    return out if isinstance(out, Tensor) else None
