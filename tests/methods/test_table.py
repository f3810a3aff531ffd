"""Tests of the table of methods: every entry can be fitted and saved, and gives the same logits after loading."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch

from expunge.core import AffineMap
from expunge.core.facts import Facts
from expunge.methods.fitting import fit
from expunge.methods.table import METHODS
from expunge.methods.unlearned import UnlearnedModel
from expunge.system.errors import ConfigError, DataError, QualityError
from expunge.system.files import write_manifest

QUICK = {
    "loft": {"rank": 16},
    "ru-linear": {"beta": 1.0},
    "ru-mlp": {"hidden": [32], "steps": 60},
    "relearn": {"cut": "stage2", "epochs": 1.0},
    "teacher-map": {"after": {"method": "relearn", "cut": "stage2", "epochs": 1.0}},
    "seal": {"after": {"method": "ru-linear", "beta": 1.0}, "epochs": 1},
}
TRAINED = {name for name, method in METHODS.items() if method.kind.facts.changes == "weights"}
EPOCHS = {name for name in TRAINED if "epochs" in inspect.signature(METHODS[name].kind).parameters}
TABLE = {name: QUICK.get(name, {"epochs": 1} if name in EPOCHS else {}) for name in METHODS}


def test_retained_moments_are_those_of_retained_rows(fit_inputs):
    direct = type(fit_inputs.retain).of(fit_inputs.z_retain)
    assert fit_inputs.retain.n == direct.n
    torch.testing.assert_close(fit_inputs.retain.cov(), direct.cov(), rtol=1e-8, atol=1e-10)


def test_the_control_and_deletion_from_a_deletable_model_are_not_guarded():
    unguarded = {name for name, method in METHODS.items() if not method.kind.facts.is_guarded}
    assert unguarded == {"logit-mask", "exact", "certified-removal"}
    assert [name for name, method in METHODS.items() if method.kind.facts.is_control] == ["logit-mask"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in TRAINED - {"fine-tune"} or name == "ru-zero-shot-mlp"))
        for name in sorted(set(METHODS) - {"certified-removal", "exact", "regun"})
    ],
)
def test_every_method_fits_and_survives_a_round_trip(name, fit_inputs, tmp_path):
    before = {k: v.clone() for k, v in fit_inputs.classifier.state_dict().items()}
    # One pass may cost accuracy, which is not tested here.
    unlearned = fit(name, fit_inputs, {**TABLE, name: {**TABLE[name], "max_drop": 1.0}})
    assert all(torch.equal(before[k], v) for k, v in fit_inputs.classifier.state_dict().items()), (
        "the original was changed"
    )
    unlearned.save(tmp_path)
    write_manifest(tmp_path, "test")
    again = UnlearnedModel.load(tmp_path)
    z = fit_inputs.z_forget[:50]
    torch.testing.assert_close(again.logits(z), unlearned.logits(z), rtol=0, atol=0)
    assert (again.classifier is not None) == (name in TRAINED)


def test_a_cut_that_is_auto_is_the_only_one_with_activations(fit_inputs, tmp_path):
    (tmp_path / "stage2.npy").symlink_to(fit_inputs.activations_dir.resolve() / "stage2.npy")
    write_manifest(tmp_path, "test")
    one = dataclasses.replace(fit_inputs, activations_dir=tmp_path)
    for name in ("relearn", "short-retrain"):
        named, found = (
            fit(name, one, {name: {"epochs": 0.3, "max_drop": 1.0, "cut": cut}}) for cut in ("stage2", "auto")
        )
        z = fit_inputs.z_forget[:50]
        assert torch.equal(named.logits(z), found.logits(z))
    with pytest.raises(ConfigError, match=r"cut: auto needs exactly one cut in activations\.cuts, but there are \d"):
        fit("short-retrain", fit_inputs, {"short-retrain": {"cut": "auto"}})


def test_a_method_for_rows_refuses_a_class(fit_inputs):
    with pytest.raises(DataError, match="keeps no retained row"):
        fit("regun", fit_inputs, TABLE)


def test_every_line_of_the_table_says_what_it_is_for():
    assert all(method.kind.facts.requests for method in METHODS.values())
    assert METHODS["delete"].kind.facts.requests == ("classes",) and METHODS["regun"].kind.facts.requests == ("rows",)
    with pytest.raises(ValueError, match="changes"):
        Facts(("rows",), ("images",), "biases", "closed form", "none")


def test_a_method_matches_the_oracle_that_its_entry_names(fit_inputs):
    table = {"oracle": {"method": "oracle-match", "after": {"method": "ru-linear", "beta": 1.0}}}
    with pytest.raises(ConfigError, match="maps the features"):
        fit("oracle", fit_inputs, table)
    teacher = {"method": "relearn", "cut": "stage2", "epochs": 2.0, "batch_size": 128}
    table["oracle"] = {"method": "oracle-match", "epochs": 1, "after": teacher}
    assert fit("oracle", fit_inputs, table).classifier is not None
    table["oracle"] = {"method": "oracle-match", "epochs": 1, "after": {"method": "head-refit"}}
    assert fit("oracle", fit_inputs, table).classifier is not None


def test_a_folded_head_answers_like_map_and_head(fit_inputs):
    unlearned = fit("ru-linear", fit_inputs, TABLE)
    assert isinstance(unlearned.map, AffineMap)
    z = fit_inputs.z_retain[:200]
    torch.testing.assert_close(
        unlearned.shipped_head.logits(z), unlearned.head.logits(unlearned.map(z)), rtol=1e-4, atol=1e-4
    )


def test_the_same_settings_give_the_same_bytes(fit_inputs, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        fit("relearn", fit_inputs, TABLE).save(tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        if file.name != "fit.json":  # this file has run times
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_entries_may_vary_settings_and_start_from_another_method(fit_inputs):
    table = {
        **TABLE,
        "loft-8": {"method": "loft", "rank": 8},
        "leace-refit": {"method": "head-refit", "after": {"method": "leace"}},
    }
    assert fit("loft-8", fit_inputs, table).info["rank"] == 8
    both, leace = fit("leace-refit", fit_inputs, table), fit("leace", fit_inputs, table)
    z = fit_inputs.z_forget[:20]
    torch.testing.assert_close(both.map(z), leace.map(z))
    assert not torch.equal(both.head.weight, leace.head.weight)


def test_relearning_keeps_what_lies_below_the_cut(fit_inputs):
    new = fit("relearn", fit_inputs, TABLE).classifier
    old, changed = fit_inputs.classifier.state_dict(), new.state_dict()
    for name in old:
        below_cut = name.startswith(("backbone.stem", "backbone.stage1", "backbone.stage2"))
        assert torch.equal(old[name], changed[name]) or not below_cut, name


def test_certified_removal_is_refused_where_the_backbone_saw_the_data(fit_inputs):
    with pytest.raises(DataError, match="backbone"):
        fit("certified-removal", fit_inputs, TABLE)


def test_exact_is_refused_where_all_weights_were_trained(fit_inputs):
    with pytest.raises(QualityError, match="training is full, so nothing but training again"):
        fit("exact", fit_inputs, TABLE)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, r"fit\.loft is missing"),
        ({"loft": {"method": "magic"}}, "unknown method 'magic'"),
        ({"loft": {"rank": 8, "after": {"method": "leace"}}}, "loft starts from the original and takes no `after`"),
        ({"loft": {"rang": 3}}, r"fit\.loft: .*rang"),
        ({"loft": {"method": "seal"}}, "write `after: {method: "),
        ({"loft": {"method": "teacher-map"}}, "write `after: {method: "),
        ({"loft": {"method": "teacher-map", "after": {"method": "leace"}}}, "method: relearn"),
        ({"loft": {"method": "seal", "after": "leace"}, "leace": {}}, "write a method with its settings"),
        (
            {"loft": {"method": "head-refit", "after": {"method": "relearn", "cut": "stage2", "epochs": 1.0}}},
            "works on the original's features",
        ),
        ({"loft": {"method": "relearn", "cut": "stem"}}, "activations.cuts has no 'stem'"),
    ],
)
def test_mistakes_in_the_table_are_refused(table, said, fit_inputs):
    with pytest.raises(ConfigError, match=said):
        fit("loft", fit_inputs, table)


def test_class_methods_refuse_requests_for_rows(fit_inputs):
    import dataclasses

    rows = dataclasses.replace(fit_inputs, forget_classes=[])
    with pytest.raises(ConfigError, match="pour-p forgets whole classes"):
        fit("pour-p", rows, TABLE)
    np.testing.assert_array_equal(fit("logit-mask", rows, TABLE).logits(rows.z_forget), rows.head.logits(rows.z_forget))
