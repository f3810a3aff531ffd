"""A line of the table of methods, and lines that other packages bring along."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from expunge.core.estimator import Estimator
from expunge.methods.inputs import FitInputs
from expunge.methods.unlearned import UnlearnedModel
from expunge.system import plugins
from expunge.system.errors import ConfigError

Settings = Mapping[str, Any]
# The entry's name in params, what the method may look at, its settings, and the result of `after` where there is one.
Fit = Callable[[str, FitInputs, Settings, UnlearnedModel | None], UnlearnedModel]


@dataclasses.dataclass(frozen=True)
class Method:
    """A line of the table: the class, whose `facts` say what it is for, and how it is fitted to a request."""

    kind: type[Estimator]
    fit: Fit


def make(name: str, method: Callable[..., Any], settings: Settings) -> Any:
    """`method(**settings)`. Raises ConfigError naming the entry `name` where the settings are not the method's."""
    try:
        return method(**settings)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"params.yaml: fit.{name}: {e}") from None


def load_installed(name: str) -> Method:
    """The method that a package declares as `name`. Raises ConfigError naming the package where it cannot be used."""
    found: Method = plugins.load("methods", name, Method)
    if not (isinstance(found.kind, type) and issubclass(found.kind, Estimator) and hasattr(found.kind, "facts")):
        raise ConfigError(
            f"method {name!r} of {plugins.package_of('methods', name)}: its class is no Estimator with `facts`"
        )
    return found
