"""Read files of weights without executing code in them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from expunge.system.errors import CheckpointError

# The keys under which training scripts commonly save the weights in a checkpoint with optimizer state.
NESTED = ("state_dict", "model", "model_state_dict")


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Copy `tensors` into `module`.

    Raises CheckpointError, with the first names, for tensors that are missing, unknown or of another shape.
    """
    own = module.state_dict()
    # Old files lack the step counters of batch norm, which are not used here.
    missing = [k for k in own if k not in tensors and not k.endswith("num_batches_tracked")]
    unknown = [k for k in tensors if k not in own]
    misshapen = [
        f"{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}"
        for k, v in tensors.items()
        if k in own and v.shape != own[k].shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
        if names
    ]
    if problems:
        kind = type(module).__name__
        raise CheckpointError(f"{source}: its tensors do not fit this {kind}: {'; '.join(problems)}")
    module.load_state_dict({**own, **tensors})


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Return name -> tensor of a `.safetensors`, `.pt` or `.pth` file. Code in the file is never executed.

    A `.pt` file may hold the tensors directly or under a key of NESTED; the prefix `module.` of data-parallel training
    is removed. Raises CheckpointError if the file is missing or damaged, or contains anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; check the path, or train the model first")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pt", ".pth"):
        return _read_torch(path)
    raise CheckpointError(f"{path}: unknown type of checkpoint; use .safetensors, .pt or .pth")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, OverflowError, MemoryError) as e:
        error = e
    with path.open("rb") as f:
        start = f.read(4)
    # Checked only after loading failed: a valid file whose header has 128 bytes also starts with the pickle byte 0x80.
    if start[:1] == b"\x80" or start == b"PK\x03\x04":
        raise CheckpointError(
            f"{path}: is a pickle named .safetensors, which is never loaded; save the weights with "
            "safetensors.torch.save_file"
        )
    raise CheckpointError(f"{path}: is not a complete safetensors file ({error}); copy or write it again")


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.load warns about pickle protocols before it refuses a file
            value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: contains more than tensors, and loading a pickle could run code; save only model.state_dict(), "
            "best with safetensors.torch.save_file"
        ) from None
    except Exception as e:  # the zip and pickle readers raise many kinds of errors for a damaged file
        raise CheckpointError(
            f"{path}: cannot be read as a torch checkpoint ({type(e).__name__}: {str(e).partition(chr(10))[0]})"
        ) from None
    for key in NESTED:
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
            break
    if not isinstance(value, dict) or not value or not all(isinstance(v, Tensor) for v in value.values()):
        raise CheckpointError(f"{path}: is not a dictionary of tensors; save model.state_dict()")
    prefix = "module."
    if all(k.startswith(prefix) for k in value):
        value = {k.removeprefix(prefix): v for k, v in value.items()}
    return dict(value)
