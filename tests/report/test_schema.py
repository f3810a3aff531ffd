"""Test the JSON Schema of reports/summary.json: the summary of a finished pipeline follows it, broken ones do not."""

import copy as copying
import json

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from expunge.evaluation.shadow_scores import ShadowMargins, floor
from expunge.report.schema import summary_schema
from expunge.report.summary import SCHEMA
from tests.summaries import problems


@pytest.fixture(scope="module")
def summary(finished):
    return json.loads((finished / "reports/summary.json").read_text())


def test_the_schema_is_a_valid_schema_of_the_present_number():
    schema = json.loads(json.dumps(summary_schema()))
    Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema"]["const"] == SCHEMA


def test_every_part_and_key_is_described():
    parts = {"Summary": summary_schema(), **summary_schema()["$defs"]}
    assert [name for name, part in parts.items() if not part.get("description")] == []
    bare = [
        f"{name}.{key}"
        for name, part in parts.items()
        for key, value in part["properties"].items()
        # A part that is defined on its own is described there. The keys of `Reasons` are the names of claims.
        if not value.get("description") and "$ref" not in json.dumps(value) and name != "Reasons"
    ]
    assert bare == []


def test_a_real_summary_follows_the_schema_and_has_no_unnamed_key(summary):
    assert problems(summary) == []


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("schema",), 1, "schema"),
        (("request", "digest"), "md5:0", "request.digest"),
        (("references", "original", "accuracy", "retain"), 1.5, "references.original.accuracy.retain"),
        (("references", "original", "verdict", "utility"), "good", "references.original.verdict.utility"),
        (("shadow", "kind"), "some", "shadow.kind"),
        (("selected",), 3, "selected"),
    ],
)
def test_a_wrong_value_is_refused_where_it_is(summary, path, value, named):
    broken = copying.deepcopy(summary)
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert [problem.partition(":")[0] for problem in problems(broken)] == [named]


def test_a_missing_key_and_an_unknown_one_are_named(summary):
    broken = copying.deepcopy(summary)
    del broken["request"]["forget_rows"]
    broken["model"]["colour"] = "red"
    found = problems(broken)
    assert len(found) == 2 and "'forget_rows' is a required property" in found[0] and "'colour'" in found[1]


def test_results_of_attacks_with_many_models_follow_the_schema():
    rng = np.random.default_rng(0)
    attacks = floor(ShadowMargins(rng.normal(size=(8, 40)), rng.normal(size=(8, 50))), seed=0)
    assert problems(attacks, "ShadowAttacks") == []
    assert problems({**attacks, "unlearned_by": "fitted to every network"}, "ShadowAttacks") == []
    del attacks["ulira"]["auc"]
    assert problems(attacks, "ShadowAttacks") == ["ulira: 'auc' is a required property"]
