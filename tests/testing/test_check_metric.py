"""Test `check_metric`: a metric that keeps the contract passes, and the error for a broken one names the fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from expunge.evaluation.forget_metric import ForgetMetric, Measure
from expunge.testing import check_metric


def true_class(logits, features, labels):
    return log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()


def naive(logits, features, labels):
    with np.errstate(all="ignore"):
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return -np.log(p[np.arange(len(labels)), labels]).mean()


def spread(logits, features, labels):
    with np.errstate(all="ignore"):
        return logits.max(1).sum() / (len(labels) - 1)


def directions(logits, features, labels):
    with np.errstate(all="ignore"):
        return (features / np.linalg.norm(features, axis=1, keepdims=True)).mean()


def sorts(logits, features, labels):
    logits.sort(axis=0)
    return logits[0, 0]


def four_classes(logits, features, labels):
    return logits[:, 3].mean() if logits.shape[1] == 4 else logits[:, [0, 1, 2, 3]] @ np.ones(5)


def test_a_good_metric_passes_and_its_values_come_back():
    found = check_metric(ForgetMetric(true_class, "log probability of the true class, nats", "{:.2f}", "low"))
    assert found["equal logits"] == pytest.approx(-np.log(4)) and len(found) == 7


BROKEN: dict[str, tuple[Measure, str]] = {
    "overflows": (naive, "logits of 10,000 and -10,000: the metric fails: ValueError: gave nan, which is not finite"),
    "divides by n - 1": (spread, "one row: the metric fails: ValueError: gave inf"),
    "divides by a norm": (directions, "features that are all zero: the metric fails: ValueError: gave nan"),
    "writes": (sorts, "50 rows of 4 classes: the metric fails: ValueError: sort array is read-only"),
    "knows four classes": (four_classes, "200 rows of 10 classes: the metric fails: ValueError"),
    "asks for a class that lacks": (lambda z, f, y: f[y == 0].max(), "the metric fails: ValueError: zero-size array"),
    "looks at the first row": (lambda z, f, y: z[0, 0], "for the same rows in another order"),
    "draws globally": (lambda z, f, y: np.random.normal(), "for the same rows: draw from a fixed seed"),
    "gives text": (lambda z, f, y: "0.5", "gave a str, not a number"),
    "gives nothing": (lambda z, f, y: None, "gave a NoneType, not a number"),
    "gives a truth": (lambda z, f, y: True, "gave a bool, not a number"),
    "gives an array": (lambda z, f, y: z.mean(0), "gave a ndarray, not a number"),
    "takes other arguments": (lambda z: 0.0, "the metric fails: TypeError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_metric_gets_the_promise_that_it_broke(name):
    measure, why = BROKEN[name]
    with pytest.raises(AssertionError) as caught:
        check_metric(ForgetMetric(measure, "mine"))
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        ({"name": " "}, "name is ' ': write it in words"),
        ({"target": ""}, "target is '': write it in words"),
        ({"form": "{:d}"}, "form '{:d}' cannot print the value 0.25"),
        ({"form": "%.3f"}, "form '%.3f' leaves the value out"),
        ({"form": "{value}"}, "form '{value}' cannot print the value 0.25: KeyError"),
    ],
)
def test_a_metric_that_reports_cannot_show_is_reported(shown: dict[str, Any], why):
    with pytest.raises(AssertionError) as caught:
        check_metric(ForgetMetric(true_class, **{"name": "mine", **shown}))
    assert why in str(caught.value)


def test_another_object_is_told():
    with pytest.raises(AssertionError, match="function is not an expunge"):
        check_metric(true_class)
