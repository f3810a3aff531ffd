"""Import torchvision and its dependents even if its compiled operators do not match the installed torch.

A torchvision wheel for CUDA fails on a CPU build of torch with `operator torchvision::nms does not exist`, and so do
imports of timm and transformers. Models do not need the compiled operators, so declaring the two that torchvision
requires on import is enough. `torchvision.ops.nms` and `torchvision.io` then do not work; nothing here uses them.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import torch

from expunge.system.errors import ConfigError

# Holds the declarations, which end with this object.
_declared: torch.library.Library | None = None


def import_vision(name: str) -> ModuleType:
    """Import the module `name` of timm, torchvision or transformers. Raises ConfigError if it is not installed."""
    try:
        if importlib.util.find_spec("torchvision") is not None:  # transformers imports it if it is installed
            _import_torchvision()
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        raise ConfigError(f"{e.name} is not installed; run pip install 'expunge[models]'") from None


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
