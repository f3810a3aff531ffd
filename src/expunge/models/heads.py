"""Find the last linear layer of a model, and split the model there into backbone and head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expunge.system.errors import ConfigError


class LogitsOf(nn.Module):
    """Wraps a transformers model to return its logits (or, after `split_at`, its features) as a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's logits, or its features after `split_at`, for pixels `(n, channels, h, w)`."""
        logits: Tensor = self.model(pixel_values=x).logits
        return logits


def find_head(model: nn.Module, pixels: Tensor, named: str | None = None) -> str:
    """Return the name of the nn.Linear whose output equals the model's output on `pixels (n, c, h, w)`.

    `named` restricts the search to one module. Raises ConfigError if there is no such layer, because `W z + b` cannot
    represent a head that is not linear or that other layers follow.
    """
    linear = {k: m for k, m in model.named_modules() if isinstance(m, nn.Linear)}
    if named is not None and named not in linear:
        raise ConfigError(
            f"model.head: {named!r} is not a linear layer of the model; its linear layers are {_some(list(linear))}"
        )
    outputs: dict[str, Tensor] = {}

    def remember(name: str) -> None:
        def hook(_module: nn.Module, _given: object, out: Tensor) -> None:
            outputs.pop(name, None)  # keeps the order of the last calls
            outputs[name] = out

        handles.append(linear[name].register_forward_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name in [named] if named is not None else linear:
        remember(name)
    try:
        logits = _run(model, pixels)
    finally:
        for handle in handles:
            handle.remove()
    for name in reversed(outputs):
        if outputs[name].shape == logits.shape and torch.equal(outputs[name], logits):
            return name
    if named is not None:
        raise ConfigError(
            f"model.head: the output of {named!r} is not the output of the model; name the last linear layer"
        )
    raise ConfigError(
        "the model has no linear head, because none of its linear layers gives the model's output unchanged; its "
        f"linear layers are {_some(list(linear))}"
    )


def split_at(model: nn.Module, head: str, pixels: Tensor) -> tuple[nn.Module, nn.Linear]:
    """Split `model` in place before the linear layer `head`; return the backbone (pixels -> z) and the head.

    A head without a bias gets one of zeros. Raises ConfigError unless z has shape (n, d) and `head(backbone(pixels))`
    reproduces the model's output (rtol 1e-4, atol 1e-5).
    """
    logits = _run(model, pixels)
    parent, _, leaf = head.rpartition(".")
    owner = model.get_submodule(parent)
    linear = model.get_submodule(head)
    assert isinstance(linear, nn.Linear)
    setattr(owner, leaf, nn.Identity())
    z = _run(model, pixels)
    if z.shape != (len(pixels), linear.in_features):
        raise ConfigError(
            f"model.head: the input of {head!r} has the shape {tuple(z.shape)}, but one vector per image is needed"
        )
    if len(list(linear.parameters())) == 1:
        linear = _with_bias(linear)
    if not torch.allclose(linear(z), logits, rtol=1e-4, atol=1e-5):
        raise ConfigError(f"model.head: applying {head!r} to its input does not reproduce the model's output")
    return model, linear


def _with_bias(linear: nn.Linear) -> nn.Linear:
    """Return a copy of `linear` with a bias of zeros. Methods that fold an affine map into the head need a bias."""
    out = nn.Linear(linear.in_features, linear.out_features)
    with torch.no_grad():
        out.weight.copy_(linear.weight)
        out.bias.zero_()
    return out


def _run(model: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.eval()(pixels)
    return out


def _some(names: list[str]) -> str:
    return (", ".join(names[-5:]) or "none") + (f" (the last 5 of {len(names)})" if len(names) > 5 else "")
