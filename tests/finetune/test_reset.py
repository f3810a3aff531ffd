"""Tests of Scissorhands and retention-based masking.

The references are full gradients, a numeric optimum and linear regression.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn.functional import cross_entropy

from expunge.finetune.loop import Run
from expunge.finetune.reset import RetentionMask, Scissorhands, largest, redraw, resettable, surgery
from expunge.finetune.retained import FineTune
from expunge.system.errors import ConfigError


def fitted(method: Any, digits: Any) -> Any:
    return method.fit(digits.model, digits.images, digits.labels, *digits.rows)


def test_nothing_reset_and_nothing_raised_is_fine_tuning_bit_for_bit(digits: Any) -> None:
    settings = {"lr": 0.01, "epochs": 2, "batch_size": 64, "seed": 3}
    plain = fitted(FineTune(**settings), digits)
    for method in (Scissorhands(sparsity=1.0, **settings), RetentionMask(keep=1.0, fisher_rows=64, **settings)):
        assert not any(mask.any() for mask in fitted(method, digits).reset_.values())
        for a, b in zip(method.classifier_.state_dict().values(), plain.classifier_.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_the_most_important_weights_of_the_layers_are_drawn_anew(digits: Any) -> None:
    """The reference is one full gradient. The number of weights is exact, and the others keep their bits."""
    method = Scissorhands(sparsity=0.9, lr=1e-30, weight_decay=0.0, momentum=0.0, epochs=1, batch_size=64)
    result = fitted(method, digits)
    before, after = ({n: p.detach() for n, p in m.named_parameters()} for m in (digits.model, result.classifier_))
    assert set(result.reset_) == {"backbone.3.weight", "head.weight", "head.bias"}  # the first third is left out
    model = digits.fresh()
    y = torch.from_numpy(digits.labels[digits.forget]).long()
    cross_entropy(model(digits.images[digits.forget]), y).backward()
    importance = torch.cat([(p * p.grad).abs().flatten() for n, p in model.named_parameters() if n in result.reset_])
    mask = torch.cat([result.reset_[n].flatten() for n, _ in model.named_parameters() if n in result.reset_])
    assert mask.sum() == math.floor(0.1 * len(mask))
    importance = importance.detach()
    assert importance[mask].min() >= importance[~mask].max() * 0.99
    for name, old in before.items():
        chosen = result.reset_.get(name, torch.zeros_like(old, dtype=torch.bool))
        assert torch.equal(after[name][~chosen], old[~chosen])
        if chosen.any():
            bound = 1 / math.sqrt(old[0].numel()) if old.ndim > 1 else 0.0
            assert (after[name][chosen].abs() <= bound).all()
            assert old.ndim == 1 or after[name][chosen].std() == pytest.approx(bound / math.sqrt(3), rel=0.2)


def test_layers_can_be_named_and_unknown_ones_are_refused(digits: Any) -> None:
    run = Run(Scissorhands(), digits.model, digits.images, digits.labels, *digits.rows)
    assert set(resettable(run, ("head", "3"))) == {"head.weight", "head.bias", "backbone.3.weight"}
    with pytest.raises(ConfigError, match="no layer 'stage9'"):
        resettable(run, ("stage9",))
    for wrong in ({"sparsity": 1.1}, {"lam": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Scissorhands(**wrong)
    with pytest.raises(ValueError, match="keep"):
        RetentionMask(keep=0.0)


def test_largest_counts_exactly() -> None:
    values = {"a": torch.arange(60.0).reshape(6, 10), "b": torch.arange(60.0, 100.0)}
    assert sum(int(m.sum()) for m in largest(values, 1 - 0.97).values()) == 3
    assert largest(values, 0.03)["b"].nonzero().flatten().tolist() == [37, 38, 39]
    assert not any(m.any() for m in largest(values, 0.0).values())


def test_a_redraw_depends_on_the_seed_only(digits: Any) -> None:
    weights = []
    for seed in (1, 1, 2):
        run = Run(Scissorhands(seed=seed), digits.model, digits.images, digits.labels, *digits.rows)
        redraw(run, {"head.weight": torch.ones(10, 128, dtype=torch.bool)})
        weights.append(run.student.head.weight.detach())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("seed", range(6))
def test_surgery_solves_the_quadratic_program(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    g, m = (
        {"a": torch.randn(4, generator=generator).double() * s, "b": torch.randn(3, generator=generator).double() * s}
        for s in (3.0, 0.7)
    )
    flat = [torch.cat(list(x.values())).numpy() for x in (g, m)]
    inner = float(flat[0] @ flat[1])
    v = surgery(g, m)
    if inner >= 0:
        assert v == 0
        return
    # The reference minimises numerically over v >= 0.5. The minimum is at this limit or where the derivative vanishes.
    best = minimize_scalar(
        lambda t: float(((flat[0] + t * flat[1]) ** 2).sum() + 1e-3 * t * t), bounds=(0.5, 1e3), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    assert v == pytest.approx(best.x, abs=1e-4)
    exact = flat[0] + surgery(g, m, damp=0.0) * flat[1]
    assert exact @ flat[1] >= -1e-12


def test_retention_masks_recover_the_golden_weights_in_linear_regression() -> None:
    """In the theory of Ding et al., with disjoint supports, fine-tuning forgets nothing and with masks everything."""
    rng = np.random.default_rng(0)
    x_r, x_f = np.zeros((5, 20)), np.zeros((5, 20))
    x_r[:, :10], x_f[:, 10:] = rng.normal(size=(2, 5, 10))
    w_true = rng.normal(size=20)
    y_r = x_r @ w_true
    everything = np.vstack([x_r, x_f])
    w_o = np.linalg.pinv(everything) @ (everything @ w_true)
    golden = np.linalg.pinv(x_r) @ y_r

    def tuned(start: np.ndarray) -> np.ndarray:
        return start + np.linalg.pinv(x_r) @ (y_r - x_r @ start)

    fisher = (x_r**2).mean(0)  # that of the squared loss with unit variance
    importance = torch.from_numpy(np.abs(w_o) * np.sqrt(fisher))
    reset = largest({"w": -importance}, 0.5)["w"].numpy()
    np.testing.assert_allclose(tuned(w_o), w_o, atol=1e-10)
    np.testing.assert_allclose(tuned(np.where(reset, 0.0, w_o)), golden, atol=1e-10)
    assert np.linalg.norm(w_o - golden) > 0.1


def test_retention_masks_reset_the_same_share_of_each_layer_and_use_retained_rows_only(digits: Any) -> None:
    settings = {"keep": 0.7, "redraw": False, "fisher_rows": 100, "lr": 1e-30, "weight_decay": 0.0}
    method = RetentionMask(**settings, epochs=1, momentum=0.0, batch_size=64)  # type: ignore[arg-type]
    result = fitted(method, digits)
    after = dict(result.classifier_.named_parameters())
    for name, mask in result.reset_.items():
        assert int(mask.sum()) == math.floor(0.3 * mask.numel() + 1e-9), name
        assert after[name][mask].abs().max() < 1e-25  # zero except for steps of 1e-30
    images = digits.images.copy()
    images[digits.forget] = 0
    blind = RetentionMask(**settings, epochs=1, momentum=0.0, batch_size=64)  # type: ignore[arg-type]
    blind.fit(digits.model, images, digits.labels, *digits.rows)
    for name, mask in result.reset_.items():
        assert torch.equal(mask, blind.reset_[name])


def test_both_forget_a_class_and_repair_the_others(digits: Any) -> None:
    others = digits.test[digits.labels[digits.test] != 5]
    assert digits.accuracy(digits.model, digits.forget) > 0.99
    for method in (
        Scissorhands(sparsity=0.7, lam=0.05, lr=0.02, epochs=4, batch_size=64),
        RetentionMask(keep=0.5, lr=0.3, epochs=6, batch_size=64, fisher_rows=300),
    ):
        result = fitted(method, digits).classifier_
        assert digits.accuracy(result, digits.forget) < 0.4
        assert digits.accuracy(result, others) > 0.9
