"""What all fitters share: arguments kept under their names, a readable repr, a clear word before `fit`."""

from __future__ import annotations

import inspect
from typing import Any


class Estimator:
    """Arguments of `__init__` are kept under their own names; `fit` returns self; fitted names end in an underscore."""

    def get_params(self) -> dict[str, Any]:
        """The arguments, by name: `type(self)(**self.get_params())` is the same fitter, unfitted."""
        return {
            name: getattr(self, name) for name in inspect.signature(type(self).__init__).parameters if name != "self"
        }

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({arguments})"

    def __getattr__(self, name: str) -> Any:
        if name.endswith("_") and not name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no {name} yet: call fit first")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
