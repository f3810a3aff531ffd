"""This module keeps the state of a training after an epoch.

With it, a killed and resumed run gives the same bytes as one that was not killed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.system.files import digest_of
from expunge.system.progress import log_message

STATE = "epoch.safetensors"
OPTIMIZER = "optimizer."


class TrainState:
    """A file of tensors with JSON in its header. It is one file so that one atomic replacement updates both."""

    def __init__(self, directory: Path | None, identity: Mapping[str, Any]) -> None:
        self.path = directory / STATE if directory is not None else None
        self.identity = digest_of(dict(identity))

    def write(
        self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Replace the file. Without a directory nothing is written. `state` must be JSON."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        more, plain = _of_optimizer(optimizer) if optimizer is not None else ({}, {})
        header = json.dumps({**state, "identity": self.identity, "optimizer": plain})
        tmp = self.path.with_suffix(".tmp")
        # Each tensor is cloned: safetensors refuses tensors that share memory, as those of layers with shared weights
        # do.
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in {**tensors, **more}.items()}, tmp, {"state": header}
        )
        os.replace(tmp, self.path)

    def read(
        self, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None
    ) -> dict[str, Any] | None:
        """Copy the kept state into `tensors` and `optimizer` and return its JSON.

        Returns None if there is no state, if the file is damaged, or if it is of another recipe, data or start.
        """
        if self.path is None or not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as f:
                state: dict[str, Any] = json.loads(f.metadata()["state"])
                if state.pop("identity") != self.identity:
                    log_message(
                        f"train: {self.path} belongs to another recipe or other data; training starts from the "
                        "beginning"
                    )
                    return None
                with torch.no_grad():
                    for name, tensor in tensors.items():
                        tensor.copy_(f.get_tensor(name))
                moments = {k: f.get_tensor(k) for k in f.keys() if k.startswith(OPTIMIZER)}  # noqa: SIM118 - a handle
                plain = state.pop("optimizer")
                if optimizer is not None:
                    _into_optimizer(optimizer, moments, plain)
        except SafetensorError as e:
            log_message(f"train: {self.path} is damaged ({e}); training starts from the beginning")
            return None
        return state


def digest_of_data(inputs: NDArray[Any], labels: NDArray[Any]) -> str:
    """Return the SHA-256 of two arrays with their shape and dtypes, which a state is for."""
    h = hashlib.sha256(f"{inputs.shape} {inputs.dtype} {labels.dtype}".encode())
    h.update(np.ascontiguousarray(inputs).data)
    h.update(np.ascontiguousarray(labels).data)
    return h.hexdigest()


def _of_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the optimizer's tensors by `optimizer.PARAMETER.KEY`, and its plain numbers.

    Numbers of parameter groups are under "groups", because some optimizers count their steps there.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for i, own in optimizer.state_dict()["state"].items():
        for key, value in own.items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{i}.{key}"] = value
            else:
                plain[f"{OPTIMIZER}{i}.{key}"] = value
    groups = optimizer.state_dict()["param_groups"]
    plain["groups"] = [
        {k: {"tensor": v.item()} if isinstance(v, Tensor) else v for k, v in group.items() if _is_number(v)}
        for group in groups
    ]
    return tensors, plain


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0)


def _into_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    numbers = {**plain}
    own = optimizer.state_dict()["param_groups"]
    stored = [
        {k: torch.tensor(v["tensor"]) if isinstance(v, dict) else v for k, v in group.items()}
        for group in numbers.pop("groups")
    ]
    groups = [{**group, **numbered} for group, numbered in zip(own, stored, strict=True)]
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in {**tensors, **numbers}.items():
        i, _, key = name.removeprefix(OPTIMIZER).partition(".")
        if isinstance(value, Tensor) and value.shape == weights[int(i)].shape:
            # Use the weight's strides: the rounding of sums over a tensor depends on its order in memory.
            value = torch.empty_like(weights[int(i)], dtype=value.dtype).copy_(value)
        state.setdefault(int(i), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
