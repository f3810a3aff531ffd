"""Importing torchvision, and what imports it, beside a torch build that its compiled operators do not fit.

A torchvision wheel built for CUDA fails on a CPU torch with `operator torchvision::nms does not exist`, and takes timm
and transformers with it. Models need none of its compiled operators: declaring the two that it asks for
lets the import pass. `torchvision.ops.nms` and `torchvision.io` then do not work; nothing here uses them.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import torch

from expunge.system.errors import ConfigError

# The declarations live as long as this object.
_declared: torch.library.Library | None = None


def import_vision(name: str) -> ModuleType:
    """Import module `name` of timm, torchvision or transformers. Raises ConfigError where it is not installed."""
    try:
        if importlib.util.find_spec("torchvision") is not None:  # transformers imports it where it is
            _import_torchvision()
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        raise ConfigError(
            f"{e.name} is not installed; pip install 'expunge[models]' brings timm, torchvision and transformers"
        ) from None


def _import_torchvision() -> None:
    global _declared
    try:
        importlib.import_module("torchvision")
    except RuntimeError as e:
        if "torchvision::nms" not in str(e) or _declared is not None:
            raise
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declared = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for op in ("nms", "qnms"):
            schema = f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            _declared.define(schema)  # type: ignore[no-untyped-call]
        importlib.import_module("torchvision")
