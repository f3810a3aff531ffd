"""The linear head of a classifier: `logits = W z + b`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge.system.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A linear head with `weight (C, d)` and `bias (C,)`, stored in float32."""

    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f"a head needs weight (C, d) and bias (C,), got {tuple(self.weight.shape)}, {tuple(self.bias.shape)}"
            )
        object.__setattr__(self, "weight", self.weight.detach().to(torch.float32).contiguous())
        object.__setattr__(self, "bias", self.bias.detach().to(torch.float32).contiguous())

    @classmethod
    def of(cls, layer: nn.Linear) -> LinearHead:
        """Return the weights of a network's last layer as a head."""
        return cls(layer.weight, layer.bias)

    @property
    def num_classes(self) -> int:
        """The number C of classes."""
        return self.weight.shape[0]

    @property
    def dim(self) -> int:
        """The number d of features."""
        return self.weight.shape[1]

    def __repr__(self) -> str:
        return f"LinearHead(num_classes={self.num_classes}, dim={self.dim})"

    @torch.no_grad()
    def logits(self, z: Tensor) -> Tensor:
        """Return the logits `(n, C)` of features `z (n, d)`, in float32, or float64 where `z` is."""
        dtype = torch.promote_types(z.dtype, torch.float32)
        return torch.nn.functional.linear(z.to(dtype), self.weight.to(z.device, dtype), self.bias.to(z.device, dtype))

    def save(self, path: Path | str) -> None:
        """Write `weight` and `bias` as one safetensors file."""
        save_file({"weight": self.weight.cpu(), "bias": self.bias.cpu()}, str(path))

    @classmethod
    def load(cls, path: Path | str) -> LinearHead:
        """Read what `save` wrote. Raises CheckpointError, which names the file, if it is something else."""
        try:
            tensors = load_file(str(path))
            return cls(tensors["weight"], tensors["bias"])
        except (OSError, SafetensorError, KeyError, ValueError) as e:
            raise CheckpointError(f"{path}: cannot be read as a linear head ({e}); run fit again") from None


def class_indices(classes: int | Sequence[int], num_classes: int) -> list[int]:
    """Return sorted, distinct class indices. Raises ValueError when one is out of range, none is given, or all are."""
    chosen = sorted({classes} if isinstance(classes, int) else set(classes))
    if not chosen or chosen[0] < 0 or chosen[-1] >= num_classes:
        raise ValueError(f"forgotten classes must be among 0 .. {num_classes - 1}, got {chosen}")
    if len(chosen) == num_classes:
        raise ValueError("every class is to be forgotten, but at least one must be retained")
    return chosen
