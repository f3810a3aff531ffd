"""What all fitters share: arguments kept under their names, a readable repr, a clear word before `fit`."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from expunge.core.facts import Facts

History = list[dict[str, float]]  # `step`, counted from 1, and its `loss`, over the steps of a descent
HISTORY_POINTS = 50


def is_kept(step: int, steps: int) -> bool:
    """Whether a history keeps this one of `steps` steps: the first, the last, and evenly spaced ones between them."""
    return step in (1, steps) or step % max(1, steps // HISTORY_POINTS) == 0


class Estimator:
    """Arguments of `__init__` are kept under their own names; `fit` returns self; fitted names end in an underscore.

    Methods also say what they are for, in `facts`.
    """

    facts: ClassVar[Facts]

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
