"""Maps `z -> z'` that are applied between a backbone and its head, with saving, loading and composition."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import linear

from expunge.core.head import LinearHead
from expunge.system.errors import CheckpointError
from expunge.system.files import write_json

Form = Literal["dense", "keep", "remove"]
TENSORS, DESCRIPTION = "map.safetensors", "map.json"


class FeatureMap(Protocol):
    """The interface of every map from features onto features."""

    @property
    def dim(self) -> int:
        """The number d of features."""

    def __call__(self, z: Tensor) -> Tensor:
        """Return the mapped features `(n, d)` of `z (n, d)`."""

    def describe(self) -> dict[str, object]:
        """Return what `map.json` holds: the kind of the map, and all that is not a tensor."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the map by name, as `map.safetensors` holds them."""

    def save(self, directory: Path | str) -> None:
        """Write the map into an existing directory."""

    def compose(self, inner: FeatureMap) -> FeatureMap:
        """Return the map `z -> self(inner(z))`."""


class _Saved:
    """Saving and composition, which all maps share."""

    def save(self: FeatureMap, directory: Path | str) -> None:
        """Write `map.safetensors` and `map.json` into an existing directory; equal maps give equal bytes."""
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors().items()}
        save_file(tensors, str(Path(directory) / TENSORS))
        write_json(Path(directory) / DESCRIPTION, self.describe())

    def compose(self: FeatureMap, inner: FeatureMap) -> FeatureMap:
        """Return the map `z -> self(inner(z))`. Raises ValueError where the dimensions differ."""
        if self.dim != inner.dim:
            raise ValueError(f"maps of {self.dim} and {inner.dim} dimensions cannot be composed")
        if isinstance(self, AffineMap) and isinstance(inner, AffineMap):
            a = self.matrix()
            return AffineMap(a @ inner.matrix(), a @ inner.bias + self.bias)
        outers = self.maps if isinstance(self, Chain) else (self,)
        inners = inner.maps if isinstance(inner, Chain) else (inner,)
        return Chain(inners + outers)


def _compute_dtype(z: Tensor, dim: int) -> torch.dtype:
    if z.ndim != 2 or z.shape[1] != dim:
        raise ValueError(f"features must have the shape (n, {dim}), got {tuple(z.shape)}")
    return torch.promote_types(z.dtype, torch.float32)


@dataclass(frozen=True, eq=False)
class AffineMap(_Saved):
    """The affine map `z' = A z + a`, with `a = bias (d,)` and `A` given by `weight` and `form`, all float64:

    * "dense": `A = weight`, `(d, d)`;
    * "keep": `A = U U^T`, where `weight = U (d, s)` has orthonormal columns and `A` itself is never formed;
    * "remove": `A = I - U U^T`, stored and applied in the same way.

    The map is computed in the dtype of `z`, or float32 where that is less precise.
    """

    weight: Tensor
    bias: Tensor
    form: Form = "dense"

    def __post_init__(self) -> None:
        if self.form not in ("dense", "keep", "remove"):
            raise ValueError(f"form must be dense, keep or remove, got {self.form!r}")
        d = self.bias.shape[0]
        if self.bias.ndim != 1 or self.weight.ndim != 2 or self.weight.shape[0] != d:
            raise ValueError(
                f"weight {tuple(self.weight.shape)} and bias {tuple(self.bias.shape)} must have the same number of rows"
            )
        if self.form == "dense" and self.weight.shape[1] != d:
            raise ValueError(f"a dense weight must be square, got {tuple(self.weight.shape)}")
        object.__setattr__(self, "weight", self.weight.detach().to(torch.float64).contiguous())
        object.__setattr__(self, "bias", self.bias.detach().to(torch.float64).contiguous())

    @property
    def dim(self) -> int:
        """The number d of features."""
        return self.bias.shape[0]

    @property
    def is_identity(self) -> bool:
        """Whether this map is `identity(dim)`."""
        return self.form == "remove" and not self.weight.numel() and not self.bias.any()

    def __repr__(self) -> str:
        rank = "" if self.form == "dense" else f", rank={self.weight.shape[1]}"
        return f"AffineMap(dim={self.dim}, form={self.form!r}{rank})"

    def matrix(self) -> Tensor:
        """Return `A`, `(d, d)` float64."""
        if self.form == "dense":
            return self.weight
        product = self.weight @ self.weight.T
        if self.form == "keep":
            return product
        return torch.eye(self.dim, dtype=torch.float64, device=product.device) - product

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """Map features `(n, d)` onto features `(n, d)`."""
        dtype = _compute_dtype(z, self.dim)
        z, weight, bias = z.to(dtype), self.weight.to(z.device, dtype), self.bias.to(z.device, dtype)
        if self.form == "dense":
            return linear(z, weight, bias)
        part = (z @ weight) @ weight.T
        return part + bias if self.form == "keep" else z - part + bias

    def fold_into(self, head: LinearHead) -> LinearHead:
        """Return the head that gives on `z` the logits of `head` on this map's output.

        Its weight is `W A` and its bias `b + W a`, computed in float64 and then rounded.
        """
        if head.dim != self.dim:
            raise ValueError(f"a map of {self.dim} features cannot be folded into a head on {head.dim} features")
        w, b = head.weight.to(self.weight), head.bias.to(self.weight)
        if self.form == "dense":
            folded = w @ self.weight
        else:
            part = (w @ self.weight) @ self.weight.T
            folded = part if self.form == "keep" else w - part
        return LinearHead(folded, b + w @ self.bias)

    def describe(self) -> dict[str, object]:
        """Return kind, form and dimension."""
        return {"kind": "affine", "form": self.form, "dim": self.dim}

    def tensors(self) -> dict[str, Tensor]:
        """Return `weight` and `bias`."""
        return {"weight": self.weight, "bias": self.bias}


def identity(dim: int) -> AffineMap:
    """Return the identity map, of form "remove" with no directions, so that its output equals its input exactly."""
    return AffineMap(torch.zeros(dim, 0), torch.zeros(dim), "remove")


@dataclass(frozen=True, eq=False)
class MlpMap(_Saved):
    """The map `z' = g(z)`, or `z + g(z)` with `residual`, where `g` is a ReLU network.

    Its weights are `(out, in)` and its biases `(out,)`, all float32. The map is computed in the dtype of `z`, or
    float32 where that is less precise.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    residual: bool = False

    def __post_init__(self) -> None:
        widths = [self.weights[0].shape[1], *(w.shape[0] for w in self.weights)]
        inputs = [w.shape[1] for w in self.weights]
        if inputs != widths[:-1] or [b.shape[0] for b in self.biases] != widths[1:] or widths[0] != widths[-1]:
            raise ValueError(f"layers with outputs {widths} and inputs {inputs} do not map features onto features")
        object.__setattr__(self, "weights", tuple(w.detach().to(torch.float32).contiguous() for w in self.weights))
        object.__setattr__(self, "biases", tuple(b.detach().to(torch.float32).contiguous() for b in self.biases))

    @property
    def dim(self) -> int:
        """The number d of features."""
        return self.weights[0].shape[1]

    def __repr__(self) -> str:
        hidden = tuple(w.shape[0] for w in self.weights[:-1])
        return f"MlpMap(dim={self.dim}, hidden={hidden}, residual={self.residual})"

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """Map features `(n, d)` onto features `(n, d)`."""
        dtype = _compute_dtype(z, self.dim)
        z = z.to(dtype)
        out = z
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            out = linear(torch.relu(out) if i else out, weight.to(z.device, dtype), bias.to(z.device, dtype))
        return z + out if self.residual else out

    def describe(self) -> dict[str, object]:
        """Return kind, number of layers, `residual` and dimension."""
        return {"kind": "mlp", "layers": len(self.weights), "residual": self.residual, "dim": self.dim}

    def tensors(self) -> dict[str, Tensor]:
        """Return weights and biases as `weight.0`, `bias.0` and so on."""
        named = {f"weight.{i}": w for i, w in enumerate(self.weights)}
        return named | {f"bias.{i}": b for i, b in enumerate(self.biases)}


@dataclass(frozen=True, eq=False)
class TiltMap(_Saved):
    """The map `z' = z + shift_y` for rows that the head assigns to a class y of `classes (k,)`.

    Other rows do not change. The head is `weight (C, d)`, `bias (C,)`, and `shifts (k, d)` holds one shift per class.
    `classes` is int64, all else float64.
    """

    weight: Tensor
    bias: Tensor
    classes: Tensor
    shifts: Tensor

    def __post_init__(self) -> None:
        if self.shifts.shape != (len(self.classes), self.weight.shape[1]) or len(self.bias) != len(self.weight):
            raise ValueError(f"shifts {tuple(self.shifts.shape)} do not fit {len(self.classes)} classes and the head")

    @property
    def dim(self) -> int:
        """The number d of features."""
        return self.weight.shape[1]

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """Map features `(n, d)` onto features `(n, d)`, in the dtype of `z`, or float32 where that is less precise."""
        z = z.to(_compute_dtype(z, self.dim))
        assigned = (z @ self.weight.to(z).T + self.bias.to(z)).argmax(1)
        table = z.new_zeros(len(self.weight), self.dim)
        table[self.classes.to(z.device)] = self.shifts.to(z)
        return z + table[assigned]

    def describe(self) -> dict[str, object]:
        """Return kind and dimension."""
        return {"kind": "tilt", "dim": self.dim}

    def tensors(self) -> dict[str, Tensor]:
        """Return the head's `weight` and `bias`, `classes` and `shifts`."""
        return {"weight": self.weight, "bias": self.bias, "classes": self.classes, "shifts": self.shifts}


@dataclass(frozen=True, eq=False)
class Chain(_Saved):
    """The composition of `maps`, of which the first is applied first, for maps that are not all affine."""

    maps: tuple[FeatureMap, ...]

    @property
    def dim(self) -> int:
        """The number d of features."""
        return self.maps[0].dim

    def __call__(self, z: Tensor) -> Tensor:
        """Map features `(n, d)` onto features `(n, d)`."""
        for step in self.maps:
            z = step(z)
        return z

    def describe(self) -> dict[str, object]:
        """Return the kind, and the descriptions of the maps in the order in which they are applied."""
        return {"kind": "chain", "maps": [m.describe() for m in self.maps]}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of all maps, with the position of the map before each name, such as `0/bias`."""
        return {f"{i}/{name}": t for i, m in enumerate(self.maps) for name, t in m.tensors().items()}


def load_map(directory: Path | str) -> FeatureMap:
    """Read the map that `save` wrote. Raises CheckpointError, which names the directory, if it holds none."""
    directory = Path(directory)
    try:
        description = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
        return _build(description, load_file(str(directory / TENSORS)))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"{directory}: {DESCRIPTION} and {TENSORS} cannot be read as a map ({e}); run fit again"
        ) from None


def _build(description: dict[str, object], tensors: dict[str, Tensor]) -> FeatureMap:
    match description:
        case {"kind": "affine", "form": ("dense" | "keep" | "remove") as form}:
            return AffineMap(tensors["weight"], tensors["bias"], form)
        case {"kind": "mlp", "layers": int(layers), "residual": bool(residual)}:
            weights = tuple(tensors[f"weight.{i}"] for i in range(layers))
            return MlpMap(weights, tuple(tensors[f"bias.{i}"] for i in range(layers)), residual)
        case {"kind": "chain", "maps": list(parts)}:
            steps = []
            for i, part in enumerate(parts):
                prefix = f"{i}/"
                steps.append(
                    _build(part, {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
                )
            return Chain(tuple(steps))
        case {"kind": "tilt"}:
            return TiltMap(tensors["weight"], tensors["bias"], tensors["classes"], tensors["shifts"])
    raise ValueError(f"unknown kind of map: {description.get('kind')!r}")
