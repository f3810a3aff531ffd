"""Test the Pareto front: the methods that no other method beats in cost, utility and erasure together."""

from expunge.report.charts import cost, pareto


def block(seconds, accuracy, kl, utility="kept"):
    return {
        "cost": {"fit_s": seconds},
        "accuracy": {"test_retain": accuracy},
        "divergence": {"forget": {"kl": kl}},
        "verdict": {"utility": utility},
    }


def summary(**methods):
    return {
        "references": {"original": {}, "retrained": None, "logit_mask": {}},
        "methods": {name.replace("_", "-"): b for name, b in methods.items()},
    }


def test_the_front_holds_what_is_best_in_something():
    runs = summary(
        quick=block(1, 0.90, 2.0),
        near=block(9, 0.90, 0.1),
        exact=block(5, 0.95, 1.0),
        slower=block(2, 0.90, 2.0),
        worse=block(9, 0.89, 0.2),
        twin=block(1, 0.90, 2.0),
        refused={"refused": "it collapsed"},
    )
    assert pareto(runs) == ["quick", "near", "exact", "twin"]


def test_a_run_without_retrained_models_has_no_front_and_no_picture():
    runs = summary(quick=block(1, 0.9, None))
    assert pareto(runs) == [] and cost(runs) == []
