"""Test the summary of a run without retrained models, the claim `exact`, refused methods, and metrics of plugins."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from expunge.evaluation.claims import claims_of
from expunge.report.export import results_csv
from expunge.report.html import column_help
from expunge.report.summary import exact_of_retrained
from expunge.report.tables import candidates, markdown, rows
from expunge.stages.compare import apart
from expunge.system.errors import QualityError


def test_without_retrained_models_no_method_is_selected_whatever_it_says(run) -> None:
    summary, _ = run(seeds=0)
    for name, method in summary["methods"].items():
        assert set(method["verdict"]["claims"].values()) == {"cannot tell"}, name
    assert summary["selected"] is None


def test_a_retrained_model_is_exact_only_where_its_backbone_never_saw_the_rows() -> None:
    def exact(clean: bool) -> str:
        return claims_of([], {}, references=3, clean_references=clean, exact=exact_of_retrained(clean))[0]["exact"]

    assert exact(True) == "shown" and exact(False) == "cannot tell"


def test_without_the_control_the_table_has_the_others(run) -> None:
    summary, _ = run(seeds=0)
    others = {name: block for name, block in summary["methods"].items() if name != "logit-mask"}
    bare = {**summary, "methods": others, "references": {**summary["references"], "logit_mask": None}}
    assert [name for name, _ in candidates(bare)] == ["original", *others]
    assert "logit-mask" in markdown(summary) and "logit-mask" not in markdown(bare)


def test_where_every_method_refuses_the_reasons_are_the_error() -> None:
    refused = {"exact": {"refused": "the key is another one"}}
    assert apart({**refused, "logit-mask": {}}) == ({"logit-mask": {}}, {"exact": "the key is another one"})
    with pytest.raises(
        QualityError, match=r"all methods were refused \(exact: the key is another one\).*add logit-mask"
    ):
        apart(refused)


def test_a_metric_of_another_package_is_a_column_with_its_form_and_an_explanation(run) -> None:
    summary, _ = run(seeds=2)
    described = {"name": "mean logit", "form": "{:.1f}", "target": "low", "package": "mine 1.0"}
    given: dict[str, Any] = {**copy.deepcopy(summary), "metrics": {"logit": described}}
    assert "metrics" not in summary  # The key is absent if params.yaml names no metric of another package.
    assert "logit" not in rows(given)[0]  # No candidate has a value yet.
    for number, (_, block) in enumerate(candidates(given)):
        block["plugins"] = {"logit": number + 0.25}
    table = rows(given)
    at = table[0].index("logit")
    assert [line[at] for line in table[1:]] == [f"{n}.2" for n in range(len(table) - 1)]
    assert "mine 1.0" in column_help(given)["logit"] and "low" in column_help(given)["logit"]
    assert "original,plugins.logit,0.25,,," in results_csv(given)
