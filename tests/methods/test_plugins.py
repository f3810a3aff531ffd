"""Tests of methods from other packages: entry points, the contract they must keep, and errors that name the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from expunge.methods.fitting import fit
from expunge.methods.seeding import seeded
from expunge.methods.unlearned import UnlearnedModel
from expunge.system.errors import ConfigError
from expunge.testing import check_method, small_inputs

EXAMPLE = Path(__file__).parents[2] / "examples" / "expunge-seven-segments"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return small_inputs(tmp_path_factory.mktemp("digits"))


def test_the_example_keeps_the_contract_and_params_may_name_it(declare, inputs):
    declared = (EXAMPLE / "pyproject.toml").read_text()
    assert 'nearest-mean = "expunge_seven_segments.method:METHOD"' in declared
    declare("methods", "nearest-mean", "expunge_seven_segments.method:METHOD")
    from expunge_seven_segments.method import METHOD

    result = check_method(METHOD, inputs)
    found = fit("mine", inputs, {"mine": {"method": "nearest-mean", "max_drop": 0.5}})
    assert torch.equal(found.logits(inputs.z_forget), result.logits(inputs.z_forget))
    assert found.info["package"] == "plugin_0 0.1.0"
    named_5 = [(m.logits(inputs.z_forget).argmax(1) == 5).float().mean() for m in (_original(inputs), result)]
    assert named_5[0] > 0.8 and named_5[1] < named_5[0]  # fewer rows get the forgotten class
    assert seeded("mine", {"mine": {"method": "nearest-mean"}}, 3) == {"mine": {"method": "nearest-mean"}}
    with pytest.raises(ConfigError, match=r"fit\.mine: strength is 2"):
        fit("mine", inputs, {"mine": {"method": "nearest-mean", "strength": 2}})


def _original(inputs) -> UnlearnedModel:
    from expunge.core import identity

    return UnlearnedModel(identity(inputs.store.dim), inputs.head)


def test_the_list_of_methods_names_the_package(declare):
    from expunge.cli import app

    declare("methods", "nearest-mean", "expunge_seven_segments.method:METHOD")
    done = CliRunner().invoke(app, ["methods", "--json"])
    listed = json.loads(done.output)
    assert listed["nearest-mean"]["package"] == "plugin_0 0.1.0" and listed["loft"]["package"] is None
    assert "nearest-mean" in CliRunner().invoke(app, ["methods"]).output


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (
            "no_such_module:METHOD",
            "plugin_0 0.1.0: no_such_module:METHOD cannot be imported: ModuleNotFoundError",
        ),
        ("json:dumps", "json:dumps is no expunge.methods.method.Method"),
        ("expunge_seven_segments.method:NearestMean", "is no expunge.methods.method.Method"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_package(declare, inputs, value, why):
    declare("methods", "broken", value)
    with pytest.raises(ConfigError, match=why):
        fit("broken", inputs, {"broken": {}})
    assert fit("logit-mask", inputs, {"logit-mask": {}}).info == {"masked": [5]}  # other methods still work


def test_an_unknown_method_is_answered_with_all_known_ones(declare, inputs):
    declare("methods", "nearest-mean", "expunge_seven_segments.method:METHOD")
    with pytest.raises(ConfigError, match=r"unknown method 'neerest-mean'; the methods are logit-mask, .*nearest-mean"):
        fit("neerest-mean", inputs, {"neerest-mean": {}})


def test_our_own_names_cannot_be_taken(declare, inputs):
    declare("methods", "loft", "expunge_seven_segments.method:METHOD")
    assert "package" not in fit("loft", inputs, {"loft": {"rank": 8, "max_drop": 1.0}}).info


def test_a_request_for_rows_is_refused_by_a_method_for_classes(tmp_path, declare):
    declare("methods", "nearest-mean", "expunge_seven_segments.method:METHOD")
    from expunge_seven_segments.method import METHOD

    with pytest.raises(AssertionError, match=r"facts\.requests has no 'rows'"):
        check_method(METHOD, small_inputs(tmp_path, "rows"))
