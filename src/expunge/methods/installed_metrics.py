"""Metrics of other packages that `evaluate.metrics` names: load, measure, and describe them for reports."""

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
    """Load the metrics `names` and return them by name. Names that no package declares are refused with the params.

    Raises ConfigError for a metric that cannot be used, with its package.
    """
    return {name: plugins.load("metrics", name, ForgetMetric) for name in names}


def described(metrics: Mapping[str, ForgetMetric]) -> dict[str, dict[str, str]]:
    """Descriptions of the metrics, so that reports need not load their packages: name, format, target and package."""
    return {
        name: {"name": m.name, "form": m.form, "target": m.target, "package": plugins.package_of("metrics", name)}
        for name, m in metrics.items()
    }


def forgotten_values(
    metrics: Mapping[str, ForgetMetric], model: Outputs, labels: NDArray[Any], parts: NDArray[Any]
) -> dict[str, float]:
    """Value of each metric on the rows whose part is "forget".

    `labels (n,)` and `parts (n,)` describe the rows of `model`. Raises ConfigError with the package's name if the value
    of a metric is not a finite number.
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
