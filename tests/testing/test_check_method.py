"""Test `check_method`: built-in methods keep the contract, and the error for a broken one names the broken promise."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from expunge.core import LinearHead, LogitMask
from expunge.core.facts import Facts
from expunge.methods.inputs import FitInputs
from expunge.methods.method import Method
from expunge.methods.table import METHODS
from expunge.methods.unlearned import UnlearnedModel
from expunge.testing import check_method, small_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return small_inputs(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize(("name", "settings"), [("logit-mask", {}), ("loft", {"rank": 16}), ("delete", {"epochs": 1})])
def test_built_in_methods_keep_the_contract(inputs, name, settings):
    result = check_method(METHODS[name], inputs, settings)
    assert (result.classifier is not None) == (name == "delete")


Change = Callable[[UnlearnedModel, FitInputs], Any]


def broken(change: Change, kind: type = LogitMask) -> Method:
    """Return the method `logit-mask` with a fault.

    `change(product, request)` returns the product to use instead, or None to keep it.
    """

    def fit(name: str, request: FitInputs, settings: Any, before: Any) -> Any:
        result = METHODS["logit-mask"].fit(name, request, settings, before)
        found = change(result, request)
        return result if found is None else found

    return Method(kind, fit)


def head(made: UnlearnedModel, weight: Any = None, bias: Any = None) -> UnlearnedModel:
    w, b = made.head.weight if weight is None else weight, made.head.bias if bias is None else bias
    return replace(made, head=LinearHead(w, b))


def changes_the_original(_: UnlearnedModel, request: FitInputs) -> None:
    request.classifier.head.bias.data += 1


def changes_features(_: UnlearnedModel, request: FitInputs) -> None:
    request.z_forget.mul_(0.5)


def trains(_: UnlearnedModel, request: FitInputs) -> None:
    request.classifier.train()


def leaves_a_gradient(_: UnlearnedModel, request: FitInputs) -> None:
    request.classifier.head.bias.sum().backward()


def own_classifier(_: UnlearnedModel, request: FitInputs) -> UnlearnedModel:
    return UnlearnedModel.of_classifier(request.classifier, {})


def training_classifier(_: UnlearnedModel, request: FitInputs) -> UnlearnedModel:
    return UnlearnedModel.of_classifier(deepcopy(request.classifier).train(), {})


class Weights(LogitMask):
    facts = Facts(("classes",), ("head",), "weights", "closed form", "a test")


class Saves(UnlearnedModel):
    """A product that saves another bias than it uses for its logits."""

    def save(self, directory: Any) -> None:
        head(UnlearnedModel(self.map, self.head, self.info), bias=self.head.bias + 1).save(directory)


BROKEN: dict[str, tuple[Method, str]] = {
    "gives the map alone": (broken(lambda m, _: m.map), "fit returned AffineMap, not an UnlearnedModel"),
    "draws": (broken(lambda m, _: head(m, bias=torch.randn(10))), "take randomness from a seed"),
    "draws from numpy": (
        broken(lambda m, _: head(m, bias=torch.from_numpy(np.random.normal(size=10)))),
        "take randomness from a seed",
    ),
    "changes the original": (
        broken(changes_the_original),
        "changed in place, of the original or the request: head.bias",
    ),
    "changes features": (broken(changes_features), "or the request: z_forget"),
    "changes rows": (broken(lambda _, r: r.retain_rows.fill(0)), "or the request: retain_rows"),
    "leaves training mode": (broken(trains), "original is left in training mode"),
    "leaves a gradient": (broken(leaves_a_gradient), "gradients are left on the original: head.bias"),
    "is not finite": (broken(lambda m, _: head(m, bias=m.head.bias * float("nan"))), "logits are not finite"),
    "loses classes": (
        broken(lambda m, _: head(m, m.head.weight[:5], m.head.bias[:5])),
        "logits have the shape (40, 5)",
    ),
    "is no JSON": (broken(lambda m, _: replace(m, info={"pair": (1, 2)})), "info does not survive JSON"),
    "writes the time": (broken(lambda m, _: replace(m, info={"at": time.perf_counter()})), "other bytes in fit.json"),
    "says head and changes weights": (broken(own_classifier), "facts.changes is 'head', but the product is not"),
    "says weights and changes a head": (
        broken(lambda *_: None, Weights),
        "facts.changes is 'weights', but the product",
    ),
    "gives a model in training mode": (broken(training_classifier, Weights), "the product's classifier is in training"),
    "saves something else": (
        broken(lambda m, _: Saves(m.map, m.head, m.info)),
        "loaded from its files, the product gives other logits",
    ),
    "takes any setting": (
        Method(LogitMask, lambda name, r, settings, b: METHODS["logit-mask"].fit(name, r, {}, b)),
        "the method accepts a setting that it does not have",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_method_gets_the_promise_that_it_broke(inputs, name):
    method, why = BROKEN[name]
    fresh = replace(inputs, classifier=deepcopy(inputs.classifier), retain_rows=inputs.retain_rows.copy())
    with pytest.raises(AssertionError) as caught:
        check_method(method, fresh)
    assert why in str(caught.value)


def test_a_request_that_the_method_is_not_for_is_reported(inputs):
    rows = replace(inputs, forget_classes=[])
    with pytest.raises(AssertionError, match=r"facts\.requests has no 'rows'"):
        check_method(METHODS["tilt"], rows)
