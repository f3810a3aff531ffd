"""Tests of residual alignment, against a ridge solution in closed form and class means of the features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expunge.finetune.loop import Run
from expunge.finetune.residual import Adapter, ResidualAlignment, attach, feature_targets
from expunge.system.errors import ConfigError, DataError


def run_of(digits: Any, model: Any = None) -> Run:
    model = digits.model if model is None else model
    return Run(ResidualAlignment(), model, digits.images, digits.labels, *digits.rows)


@pytest.mark.parametrize(
    "base", [nn.Linear(5, 4), nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(3, 4, 3, padding=2, dilation=2)]
)
def test_a_residual_starts_at_zero_and_merges_into_the_layer(base: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    adapter = Adapter(base, 2, generator)
    x = torch.randn(*((6, 5) if isinstance(base, nn.Linear) else (6, 3, 8, 8)), generator=generator)
    with torch.no_grad():
        plain = base(x)
        assert torch.equal(adapter(x), plain) and adapter.energy() == 0
        adapter.up.normal_(generator=generator)
        adapter.residuals.clear()
        added = adapter(x)
        assert (added - plain).abs().max() > 0.1
        energy = (added - plain).square().sum(1).reshape(6, -1).mean()
        assert adapter.energy().item() == pytest.approx(energy.item(), rel=1e-4)
        adapter.residuals.clear()
        for rows in (slice(0, 2), slice(2, 6)):  # an encoder of texts passes the rows of a batch in groups
            adapter(x[rows])
        assert adapter.energy().item() == pytest.approx(energy.item(), rel=1e-4)
        torch.testing.assert_close(adapter.merged()(x), added, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in (adapter.up, adapter.down)) == 2 * (4 + base.weight[0].numel())


def test_only_residuals_move_and_the_merged_network_has_the_old_names(digits: Any) -> None:
    method = ResidualAlignment(lr=0.05, batch_size=64, epochs=1, rank=3)
    result = method.fit(digits.model, digits.images, digits.labels, *digits.rows).classifier_
    before, after = digits.model.state_dict(), result.state_dict()
    assert list(before) == list(after)
    assert [n for n in before if not torch.equal(before[n], after[n])] == ["backbone.3.weight"]
    change = (after["backbone.3.weight"] - before["backbone.3.weight"]).flatten(1)
    assert method.added_ == 3 * (32 + 16 * 9) and int(torch.linalg.matrix_rank(change, rtol=1e-4)) == 3


def test_a_full_rank_residual_of_the_last_layer_reaches_the_ridge_solution(digits: Any) -> None:
    """For z = W h, the minimum of mean_r ||D h||^2 + b mean_f ||W h + D h - t||^2 has a closed form."""
    model = digits.fresh()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 6, bias=False))
        model.head = nn.Linear(6, 10)
    model.card = replace(model.card, name="linear", feature_dim=6)
    model.eval()
    b = 2.0
    method = ResidualAlignment(rank=6, weight=b, layers=("1",), lr=0.005, epochs=800, batch_size=10_000, momentum=0.9)
    result = method.fit(model, digits.images, digits.labels, *digits.rows).classifier_
    h_r, h_f = (model.preprocess(digits.images[r]).flatten(1).double() for r in digits.rows)
    w = model.backbone[1].weight.detach().double()
    target = feature_targets(run_of(digits, model))[5].double()
    left = h_r.T @ h_r / len(h_r) + b * h_f.T @ h_f / len(h_f)
    right = b * (target - h_f @ w.T).T @ h_f / len(h_f)
    best = right @ torch.linalg.pinv(left)

    def objective(d: torch.Tensor) -> float:
        away = (h_f @ (w + d).T - target).square().sum(1).mean()
        return float((h_r @ d.T).square().sum(1).mean() + b * away)

    found = result.backbone[1].weight.detach().double() - w
    assert objective(best) <= objective(found) < objective(best) + 0.01 * (objective(0 * best) - objective(best))


def test_targets_are_the_nearest_retained_mean_or_that_of_unseen_rows(digits: Any) -> None:
    means = torch.stack([digits.z(digits.model, digits.retain[digits.labels[digits.retain] == c]).mean(0)
                         for c in range(10) if c != 5])  # fmt: skip
    own = digits.z(digits.model, digits.forget).mean(0)
    nearest = means[(means - own).norm(dim=1).argmin()]
    torch.testing.assert_close(feature_targets(run_of(digits))[5], nearest, atol=1e-4, rtol=1e-4)

    rows = np.random.default_rng(0).permutation(np.concatenate(digits.rows))
    arguments = (ResidualAlignment(), digits.model, digits.images, digits.labels, rows[100:], rows[:100])
    targets = feature_targets(Run(*arguments, digits.test))
    of_three = digits.z(digits.model, digits.test[digits.labels[digits.test] == 3]).mean(0)
    torch.testing.assert_close(targets[3], of_three, atol=1e-4, rtol=1e-4)
    with pytest.raises(DataError, match="needs unseen_rows"):
        feature_targets(Run(*arguments))


@pytest.mark.slow
def test_a_class_goes_to_its_neighbour_and_the_others_stay(digits: Any) -> None:
    others = digits.test[digits.labels[digits.test] != 5]
    method = ResidualAlignment(weight=0.5, lr=0.3, epochs=10, batch_size=64, rank=8)
    result = method.fit(digits.model, digits.images, digits.labels, *digits.rows).classifier_
    assert digits.accuracy(digits.model, digits.forget) > 0.99
    assert digits.accuracy(result, digits.forget) < 0.1
    assert digits.accuracy(result, others) > 0.9


def test_networks_without_such_layers_are_refused(digits: Any) -> None:
    model = digits.fresh()
    model.backbone = nn.Sequential(nn.Flatten(), nn.ZeroPad1d((32, 32)))
    with pytest.raises(ConfigError, match="no linear layer"):
        attach(run_of(digits, model), 2, ())
    with pytest.raises(ConfigError, match="within stage9"):
        attach(run_of(digits), 2, ("stage9",))
    with pytest.raises(ValueError, match="rank"):
        ResidualAlignment(rank=0)
