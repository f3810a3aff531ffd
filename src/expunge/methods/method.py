"""An entry of the table of methods, and entries that other packages provide."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any

from expunge.core.estimator import Estimator
from expunge.methods.inputs import FitInputs
from expunge.methods.unlearned import UnlearnedModel
from expunge.system import plugins
from expunge.system.errors import ConfigError

Settings = Mapping[str, Any]
# Arguments: the entry's name in params, the method's inputs, its settings, and the result of `after` or None.
Fit = Callable[[str, FitInputs, Settings, UnlearnedModel | None], UnlearnedModel]


class After(enum.Enum):
    """Whether an entry may start from the result of another method, which its `after` names."""

    refused = enum.auto()
    optional = enum.auto()
    required = enum.auto()


@dataclasses.dataclass(frozen=True)
class Method:
    """An entry of the table: the class, whose `facts` describe its use, and the function that fits it to a request.

    after       whether the entry starts from the result of another method
    filled      placeholders for the arguments that `fit` fills in from the request; the class accepts them
    by_teacher  settings whose value may be a mapping, the settings of a teacher that the value is fitted to
    """

    kind: type[Estimator]
    fit: Fit
    after: After = After.refused
    filled: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    by_teacher: tuple[str, ...] = ()


def make(name: str, method: Callable[..., Any], settings: Settings) -> Any:
    """Return `method(**settings)`. Raises ConfigError, naming the entry `name`, if the settings are invalid."""
    try:
        return method(**settings)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"params.yaml: fit.{name}: {e}") from None


def load_installed(name: str) -> Method:
    """Load the method that a package declares as `name`. Raises ConfigError, naming the package, if it is unusable."""
    found: Method = plugins.load("methods", name, Method)
    if not (isinstance(found.kind, type) and issubclass(found.kind, Estimator) and hasattr(found.kind, "facts")):
        raise ConfigError(
            f"method {name!r} of {plugins.package_of('methods', name)}: its class must be an Estimator with `facts`"
        )
    return found
