"""Tests of probes inside a backbone: which stages they read, which features they get, and what is stored of them."""

import copy

import numpy as np
import pytest
import torch

from expunge.evaluation.representation import linear_probe_rows
from expunge.evaluation.rows import choose_rows
from expunge.methods.depth import TEST, TRAIN, cached_probes, stage_features, stage_names, stage_probes
from expunge.models.zoo import build


@pytest.fixture(scope="module")
def planned(fit_inputs):
    """Return the plan of rows for the finished run, with every row in a part."""
    part = np.full(len(fit_inputs.labels), "test_retain", dtype="U11")
    part[fit_inputs.train_rows] = "retain"
    removed = fit_inputs.labels == fit_inputs.forget_classes[0]
    part[(part == "retain") & removed] = "forget"
    part[(part == "test_retain") & removed] = "test_forget"
    return choose_rows(fit_inputs.labels, part, fit_inputs.store.z(), 0)


def test_stages_are_spread_over_depth_and_the_last_is_left_to_the_heads_own_gates(fit_inputs):
    assert stage_names(fit_inputs.classifier) == ("stem", "stage1", "stage2")
    deep = build("resnet-small", 10, (28, 28, 1), seed=0).eval()
    assert stage_names(deep) == stage_names(copy.deepcopy(deep))


def test_features_are_the_stages_outputs_averaged_over_space(fit_inputs):
    names, rows = ("stem", "stage2"), np.arange(0, 700, 7)
    found = stage_features(fit_inputs.classifier, names, fit_inputs.dataset, rows)
    seen = {}
    backbone = fit_inputs.classifier.backbone
    hooks = [
        backbone.get_submodule(n).register_forward_hook(lambda _m, _i, out, n=n: seen.__setitem__(n, out))
        for n in names
    ]
    with torch.no_grad():
        fit_inputs.classifier(fit_inputs.dataset.images(rows))
    for hook in hooks:
        hook.remove()
    for name in names:
        np.testing.assert_allclose(found[name], seen[name].mean((2, 3)).numpy(), rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks for module in fit_inputs.classifier.modules()), "a hook was left behind"


def test_probes_are_those_of_the_last_stage_on_other_features(fit_inputs, planned):
    at = np.arange(len(fit_inputs.labels))
    found = stage_probes(fit_inputs.classifier, ("stage2",), fit_inputs.dataset, planned, at)
    train, test = planned.probe_train, planned.probe_test
    assert max(map(len, train)) <= TRAIN and max(map(len, test)) <= TEST, "digits are few: nothing is thinned"
    z = stage_features(fit_inputs.classifier, ("stage2",), fit_inputs.dataset, at)["stage2"]
    positive, truth = (np.repeat([True, False], len(side[0])) for side in (train, test))
    expected = linear_probe_rows(z[np.concatenate(train)], positive, z[np.concatenate(test)], truth)
    np.testing.assert_allclose(found["representation.stages.probe_1"], expected)
    assert expected.mean() > 0.6


def test_stored_probes_are_read_again_and_another_model_has_its_own_file(fit_inputs, planned, tmp_path):
    at, names = np.arange(len(fit_inputs.labels)), ("stem",)

    def probes(digest):
        return cached_probes(tmp_path, digest, fit_inputs.classifier, names, fit_inputs.dataset, planned, at)

    first = probes("a")
    [file] = tmp_path.iterdir()
    stamp = file.stat().st_mtime_ns
    again = probes("a")
    assert file.stat().st_mtime_ns == stamp and again.keys() == first.keys()
    np.testing.assert_array_equal(*(next(iter(p.values())) for p in (first, again)))
    probes("b")
    assert len(list(tmp_path.iterdir())) == 2
