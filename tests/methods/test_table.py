"""The table of methods: every entry fits, is saved, and comes back with the same logits."""

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


def test_retained_moments_are_those_of_retained_rows(request_):
    direct = type(request_.retain).of(request_.z_retain)
    assert request_.retain.n == direct.n
    torch.testing.assert_close(request_.retain.cov(), direct.cov(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"certified-removal", "exact", "regun"}))
def test_every_method_fits_and_comes_back(name, request_, tmp_path):
    before = {k: v.clone() for k, v in request_.classifier.state_dict().items()}
    # What one pass does to accuracy is not asked here.
    unlearned = fit(name, request_, {**TABLE, name: {**TABLE[name], "max_drop": 1.0}})
    assert all(torch.equal(before[k], v) for k, v in request_.classifier.state_dict().items()), (
        "the original was changed"
    )
    unlearned.save(tmp_path)
    write_manifest(tmp_path, "test")
    again = UnlearnedModel.load(tmp_path)
    z = request_.z_forget[:50]
    torch.testing.assert_close(again.logits(z), unlearned.logits(z), rtol=0, atol=0)
    assert (again.classifier is not None) == (name in TRAINED)


def test_a_method_for_rows_refuses_a_class(request_):
    with pytest.raises(DataError, match="keeps no retained row"):
        fit("regun", request_, TABLE)


def test_every_line_of_the_table_says_what_it_is_for():
    assert all(method.kind.facts.requests for method in METHODS.values())
    assert METHODS["delete"].kind.facts.requests == ("classes",) and METHODS["regun"].kind.facts.requests == ("rows",)
    with pytest.raises(ValueError, match="changes"):
        Facts(("rows",), ("images",), "biases", "closed form", "none")


def test_a_method_matches_the_oracle_that_its_entry_names(request_):
    table = {"oracle": {"method": "oracle-match", "after": {"method": "ru-linear", "beta": 1.0}}}
    with pytest.raises(ConfigError, match="maps the features"):
        fit("oracle", request_, table)
    table["oracle"] = {"method": "oracle-match", "epochs": 1, "after": {"method": "relearn", "cut": "stage2"}}
    assert fit("oracle", request_, table).classifier is not None
    table["oracle"] = {"method": "oracle-match", "epochs": 1, "after": {"method": "head-refit"}}
    assert fit("oracle", request_, table).classifier is not None


def test_a_folded_head_answers_like_map_and_head(request_):
    unlearned = fit("ru-linear", request_, TABLE)
    assert isinstance(unlearned.map, AffineMap)
    z = request_.z_retain[:200]
    torch.testing.assert_close(
        unlearned.shipped_head.logits(z), unlearned.head.logits(unlearned.map(z)), rtol=1e-4, atol=1e-4
    )


def test_the_same_settings_give_the_same_bytes(request_, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        fit("relearn", request_, TABLE).save(tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        if file.name != "fit.json":  # it holds seconds
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_variants_and_composition(request_):
    table = {
        **TABLE,
        "loft-8": {"method": "loft", "rank": 8},
        "leace-refit": {"method": "head-refit", "after": {"method": "leace"}},
    }
    assert fit("loft-8", request_, table).info["rank"] == 8
    both, leace = fit("leace-refit", request_, table), fit("leace", request_, table)
    z = request_.z_forget[:20]
    torch.testing.assert_close(both.map(z), leace.map(z))
    assert not torch.equal(both.head.weight, leace.head.weight)


def test_relearning_keeps_what_lies_below_the_cut(request_):
    new = fit("relearn", request_, TABLE).classifier
    old, changed = request_.classifier.state_dict(), new.state_dict()
    for name in old:
        kept = name.startswith(("backbone.stem", "backbone.stage1", "backbone.stage2"))
        assert torch.equal(old[name], changed[name]) or not kept, name


def test_certified_removal_is_refused_where_the_backbone_saw_the_data(request_):
    with pytest.raises(DataError, match="backbone"):
        fit("certified-removal", request_, TABLE)


def test_exact_is_refused_where_all_weights_were_trained(request_):
    with pytest.raises(QualityError, match="training is full: nothing but training again"):
        fit("exact", request_, TABLE)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, r"fit\.loft is missing"),
        ({"loft": {"method": "magic"}}, "unknown method 'magic'"),
        ({"loft": {"rang": 3}}, r"fit\.loft: .*rang"),
        ({"loft": {"method": "seal"}}, "needs `after: {method: "),
        ({"loft": {"method": "teacher-map"}}, "needs `after: {method: "),
        ({"loft": {"method": "teacher-map", "after": {"method": "leace"}}}, "method: relearn"),
        ({"loft": {"method": "seal", "after": "leace"}, "leace": {}}, "not a method with its settings"),
        (
            {"loft": {"method": "head-refit", "after": {"method": "relearn", "cut": "stage2", "epochs": 1.0}}},
            "works on the original's features",
        ),
        ({"loft": {"method": "relearn", "cut": "stem"}}, "activations.cuts has no 'stem'"),
    ],
)
def test_mistakes_in_the_table(table, said, request_):
    with pytest.raises(ConfigError, match=said):
        fit("loft", request_, table)


def test_class_methods_refuse_requests_for_rows(request_):
    import dataclasses

    rows = dataclasses.replace(request_, forget_classes=[])
    with pytest.raises(ConfigError, match="pour-p forgets whole classes"):
        fit("pour-p", rows, TABLE)
    np.testing.assert_array_equal(fit("logit-mask", rows, TABLE).logits(rows.z_forget), rows.head.logits(rows.z_forget))
