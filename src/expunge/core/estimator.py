"""The base class of all estimators: stored arguments, a readable repr, and a clear error before `fit`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from expunge.core.facts import Facts

History = list[dict[str, float]]  # entries of `step` (counted from 1) and `loss`, in the order of the steps
HISTORY_POINTS = 50


def is_recorded(step: int, steps: int) -> bool:
    """Whether the history records this `step` of `steps`: the first, the last, and evenly spaced ones between them."""
    return step in (1, steps) or step % max(1, steps // HISTORY_POINTS) == 0


class Estimator:
    """Base class that follows scikit-learn's conventions.

    Arguments of `__init__` are stored under their own names, `fit` returns self, and the names of fitted attributes end
    in an underscore. Methods also describe themselves in the class attribute `facts`. Their attribute `for_rows` holds
    the settings that replace the defaults in requests for rows of retained classes, where the defaults would cost too
    much accuracy.
    """

    facts: ClassVar[Facts]
    for_rows: ClassVar[Mapping[str, Any]] = {}

    def get_params(self) -> dict[str, Any]:
        """Return the arguments by name; `type(self)(**self.get_params())` is an unfitted copy."""
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
