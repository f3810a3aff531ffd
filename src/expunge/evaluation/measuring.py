"""Per-row measurements of one model, so that differences between models can be resampled; `suite` chooses the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation import accuracy as acc
from expunge.evaluation import divergence as div
from expunge.evaluation import membership as mia
from expunge.evaluation import representation as rep
from expunge.evaluation.exposure import canary_placements
from expunge.evaluation.gates import CANARY, GEOMETRY, RELEARN, aligned
from expunge.evaluation.rows import Rows

KNN_TRAIN = 2000  # rows on each side of kNN's training set
RELEARN_ROWS = 2000  # forgotten rows that the head relearns
GEOMETRY_ROWS = 4000  # test rows of all classes for class geometry


@dataclass(frozen=True)
class Outputs:
    """Outputs of a model for every row of the dataset.

    `logits (n, C)`; `z (n, d)`, its backbone's features; `z_prime (n, d')`, the input of its head, or None where that
    is z itself. `stages`: per-row success of the probes inside the backbone by the gate's path, over the same rows for
    every model; empty where none were measured.
    """

    logits: NDArray[Any]
    z: NDArray[Any]
    z_prime: NDArray[Any] | None = None
    stages: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def head_input(self) -> NDArray[Any]:
        """What the head reads: `z_prime`, or `z` where there is no map."""
        return self.z if self.z_prime is None else self.z_prime


def probe_rows(z: NDArray[Any], rows: Rows, kind: str) -> NDArray[Any] | None:
    """Per-row success of a probe on the planned rows; `kind` is "linear" or "knn". None without rows for a probe."""
    if rows.probe_train is None or rows.probe_test is None:
        return None
    train, test = rows.probe_train, rows.probe_test
    if kind == "knn":
        train = (rows.thin(train[0], KNN_TRAIN, 1), rows.thin(train[1], KNN_TRAIN, 2))
    positive, truth = (np.repeat([True, False], len(side[0])) for side in (train, test))
    run = rep.linear_probe_rows if kind == "linear" else rep.knn_rows
    return run(z[np.concatenate(train)], positive, z[np.concatenate(test)], truth)


def relearned(logits: NDArray[Any], head_input: NDArray[Any], rows: Rows) -> NDArray[np.bool_] | None:
    """`representation.relearned_rows` on the planned forgotten rows, starting from the model's own logits."""
    index = rows.thin(rows.forget, RELEARN_ROWS, 7)
    return rep.relearned_rows(logits[index], np.asarray(head_input)[index], rows.labels[index])


def area(right: NDArray[np.bool_] | None) -> NDArray[np.float64] | None:
    """Area under each row's relearning curve `(n,)`, in [0, 1]: the share of steps at which the row is correct."""
    return None if right is None else right.mean(axis=0)


def geometry_rows(logits: NDArray[Any], rows: Rows) -> NDArray[Any] | None:
    """`membership.class_geometry_rows` on the planned test rows; None unless whole classes are forgotten."""
    if not rows.whole_classes:
        return None
    near, classes = rows.thin(rows.test, GEOMETRY_ROWS, 3), rows.forgotten_classes
    return mia.class_geometry_rows(logits[near], np.isin(rows.labels[near], classes), classes, rows.rng(4))


@dataclass(frozen=True)
class OfFeatures:
    """What is measured of one set of features, by row."""

    probe: NDArray[Any] | None
    alignment: NDArray[Any] | None
    knn: NDArray[Any] | None


@dataclass(frozen=True)
class Measured:
    """Per-row values behind the gates, by the path in the metrics block, over the same rows for every model."""

    rows: dict[str, NDArray[Any] | None]
    knn: dict[str, NDArray[Any] | None]
    relearned: NDArray[np.bool_] | None

    @property
    def of_z(self) -> OfFeatures:
        """The measurements of the backbone's features."""
        probe, alignment = self.rows["representation.probe_z"], self.rows["representation.alignment_z"]
        return OfFeatures(probe, alignment, self.knn["representation.knn_z"])

    def value(self, path: str) -> float | None:
        """Return the mean over rows of the measure at `path`, or None if it was not measured."""
        values = self.rows[path]
        return None if values is None else div.mean(values)


class Measuring:
    """Measures models on the same rows, each model once.

    Features are compared by value, and equal features are measured only once, because methods that replace only the
    head share the original's features.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.features: list[tuple[NDArray[Any], OfFeatures]] = []
        self.models: list[tuple[Outputs, Measured]] = []

    def of_features(self, z: NDArray[Any]) -> OfFeatures:
        """Return the measurements of the features `z (n, d)`, from an earlier call if they are equal."""
        for seen, found in self.features:
            if seen is z or np.array_equal(seen, z):
                return found
        found = OfFeatures(probe_rows(z, self.rows, "linear"), aligned(z, self.rows), probe_rows(z, self.rows, "knn"))
        self.features.append((z, found))
        return found

    def of(self, model: Outputs) -> Measured:
        """Return the measurements of `model`, from an earlier call if it is the same object."""
        for seen, found in self.models:
            if seen is model:
                return found
        found = measure(model, self.rows, self.of_features)
        self.models.append((model, found))
        return found

    def knows(self, model: Outputs, measured: Measured) -> None:
        """Register measurements of `model` that were made on these rows before."""
        self.models.append((model, measured))
        self.features.append((model.z, measured.of_z))


def measure(model: Outputs, rows: Rows, of_features: Callable[[NDArray[Any]], OfFeatures] | None = None) -> Measured:
    """Measure everything of one model that a gate compares, per row."""
    logits, y = np.asarray(model.logits), rows.labels
    out: dict[str, NDArray[Any] | None] = {
        f"accuracy.{name}": acc.correct_rows(logits[index], y[index]).astype(np.float64)
        for name, index in rows.parts.items()
    }
    out["membership.mia_lr_member"] = mia.mia_lr_rows(
        logits[rows.parts["retain"]], logits[rows.test], logits[rows.forget]
    )
    of_features = of_features or Measuring(rows).of_features
    z = of_features(model.z)
    z_prime = z if model.z_prime is None else of_features(model.z_prime)
    out |= {"representation.probe_z": z.probe, "representation.probe_z_prime": z_prime.probe}
    out |= dict(model.stages)
    out |= {"representation.alignment_z": z.alignment, "representation.alignment_z_prime": z_prime.alignment}
    right = relearned(logits, model.head_input, rows)
    out |= {RELEARN: area(right), GEOMETRY: geometry_rows(logits, rows)}
    out[CANARY] = None if rows.canaries is None else canary_placements(logits, rows.canaries)
    knn = {"representation.knn_z": z.knn, "representation.knn_z_prime": z_prime.knn}
    return Measured(out, knn, right)
