"""Metrics of other packages that `evaluate.metrics` names: loaded, measured, and described for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.data.schema import FORGET
from expunge.evaluation.forget_metric import ForgetMetric
from expunge.evaluation.measuring import Outputs
from expunge.system import plugins
from expunge.system.errors import ConfigError

BLOCK = "plugins"  # the part of a model's metrics that holds them: {name: value}


def load_metrics(names: Sequence[str]) -> dict[str, ForgetMetric]:
    """By name. Raises ConfigError naming the package of one that cannot be used, and all known names for an unknown."""
    known = plugins.names("metrics")
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            f"params.yaml: evaluate.metrics: no installed package declares {unknown[0]!r}; known: "
            f"{', '.join(known) or 'none'}"
        )
    return {name: plugins.load("metrics", name, ForgetMetric) for name in names}


def described(metrics: Mapping[str, ForgetMetric]) -> dict[str, dict[str, str]]:
    """What reports need to show them without the packages: their names in words, formats, targets and packages."""
    return {
        name: {"name": m.name, "form": m.form, "target": m.target, "package": plugins.package_of("metrics", name)}
        for name, m in metrics.items()
    }


def forgotten_values(
    metrics: Mapping[str, ForgetMetric], model: Outputs, labels: NDArray[Any], parts: NDArray[Any]
) -> dict[str, float]:
    """Each metric of the rows whose part is "forget". `labels (n,)` and `parts (n,)` describe the rows of `model`.

    Raises ConfigError with the package's name where a metric gives no finite number.
    """
    rows = np.flatnonzero(np.asarray(parts) == FORGET)
    found = {}
    for name, metric in metrics.items():
        try:
            found[name] = metric.of(model.logits[rows], model.head_input[rows], labels[rows])
        except ValueError as e:
            who = plugins.package_of("metrics", name)
            raise ConfigError(f"metric {name!r} of {who}: {e}; leave it out of evaluate.metrics") from e
    return found
