"""What a summary says where nothing was retrained, and what is exact about a retrained model."""

from __future__ import annotations

from expunge.evaluation.claims import claims_of
from expunge.report.summary import exact_of_retrained


def test_without_retrained_models_no_method_is_selected_whatever_it_says(run) -> None:
    summary, _ = run(seeds=0)
    for name, method in summary["methods"].items():
        assert set(method["verdict"]["claims"].values()) == {"cannot tell"}, name
    assert summary["selected"] is None


def test_a_retrained_model_is_exact_only_where_its_backbone_never_saw_the_rows() -> None:
    def exact(clean: bool) -> str:
        return claims_of([], {}, references=3, clean_references=clean, exact=exact_of_retrained(clean))[0]["exact"]

    assert exact(True) == "shown" and exact(False) == "cannot tell"
