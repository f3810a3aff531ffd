"""Shadow heads trained together equal heads trained one by one, each on its own half of the rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from expunge.evaluation import shadow_heads as ens
from expunge.evaluation.ulira import margins, ulira


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    z, y = load_digits(return_X_y=True)
    return z.astype(np.float32), y


def train(digits: tuple[np.ndarray, np.ndarray], heads: int = 16, **kw: object) -> ens.ShadowHeads:
    return ens.train_heads(*digits, heads, saw_forget_data=False, seed=0, **kw)  # type: ignore[arg-type]


def test_a_backbone_that_saw_the_data_is_refused(digits: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="backbone saw these rows"):
        ens.train_heads(*digits, 4, saw_forget_data=True, seed=0)


def test_heads_learn_as_well_as_scikit_learn_on_their_own_half(digits: tuple[np.ndarray, np.ndarray]) -> None:
    from sklearn.linear_model import LogisticRegression

    z, y = digits
    found = train(digits, recipe=ens.HeadRecipe(epochs=20, batch=64))
    assert (found.member.sum(axis=1) == len(z) // 2).all()
    for head in range(3):
        mine, other = found.member[head], ~found.member[head]
        right = (z[other] @ found.weight[head].T + found.bias[head]).argmax(axis=1) == y[other]
        expected = LogisticRegression(C=0.1, max_iter=2000).fit(z[mine] / 16, y[mine]).score(z[other] / 16, y[other])
        assert right.mean() > expected - 0.02


def test_training_at_once_equals_training_one_after_another(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """The reference trains each head alone, on its rows in its own order."""
    z, y = digits
    recipe = ens.HeadRecipe(epochs=2, batch=100)
    found = train(digits, heads=ens.TOGETHER + 2, recipe=recipe)
    centre, unmix = ens.whitening(z)
    x, t = torch.from_numpy((z - centre) @ unmix), torch.from_numpy(y)
    for head in (0, 1, ens.TOGETHER + 1):
        weight, bias = torch.zeros(10, x.shape[1], dtype=torch.double), torch.zeros(10, dtype=torch.double)
        mine, rng = np.flatnonzero(found.member[head]), np.random.default_rng([0, head])
        steps, step = 2 * (len(mine) // 50), 0
        for _ in range(2):
            order = rng.permutation(mine)
            for start in range(0, len(mine) - 49, 50):
                rows = order[start : start + 50]
                w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
                gw, gb = torch.autograd.grad(torch.nn.functional.cross_entropy(x[rows] @ w.T + b, t[rows]), (w, b))
                rate = recipe.rate * (1 - step / steps)
                weight, bias = weight * (1 - rate * recipe.decay) - rate * gw, bias - rate * gb
                step += 1
        expected = x @ weight.T + bias
        got = z @ found.weight[head].T + found.bias[head]
        np.testing.assert_allclose(got, expected.numpy(), atol=2e-3)


def test_two_calls_on_the_same_rows_are_as_alike_as_two_halves_of_one_call(
    digits: tuple[np.ndarray, np.ndarray],
) -> None:
    """Heads of one call must not share the order of minibatches.

    When they did, the AUC between two calls was .56 to .60, and between halves of one call .49 to .52.
    """
    z, y = digits
    retained, rows = slice(300, None), slice(0, 300)

    def call(seed: int) -> np.ndarray:
        return ens.train_heads(z[retained], y[retained], 64, saw_forget_data=False, seed=seed).margins(z[rows], y[rows])

    found = []
    for seed in (0, 10, 20):
        scores = np.concatenate([call(seed), call(seed + 1)])
        inside = np.repeat([True, False], 64)[:, None] & np.ones(scores.shape, dtype=bool)
        found.append(ulira(scores, inside)["auc"])
    assert np.mean(found) == pytest.approx(0.5, abs=0.03)


def test_margins_and_probabilities_are_those_of_each_head(digits: tuple[np.ndarray, np.ndarray]) -> None:
    z, y = digits
    found = train(digits, heads=3)
    got, p = found.margins(z[:700], y[:700]), found.probabilities(z[:700], y[:700])
    for head in range(3):
        logits = z[:700] @ found.weight[head].T + found.bias[head]
        np.testing.assert_allclose(got[head], margins(logits, y[:700]), atol=1e-3)
        soft = torch.softmax(torch.from_numpy(logits), dim=1)[torch.arange(700), torch.from_numpy(y[:700])]
        np.testing.assert_allclose(p[head], soft.numpy(), atol=1e-5)


def test_same_seed_same_bytes_and_another_seed_other_halves(digits: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = train(digits, heads=4), train(digits, heads=4)
    assert a.weight.tobytes() == b.weight.tobytes() and a.bias.tobytes() == b.bias.tobytes()
    c = ens.train_heads(*digits, 4, saw_forget_data=False, seed=1)
    assert not np.array_equal(a.member, c.member)


def test_ulira_finds_rows_with_random_labels_that_a_head_had_to_memorise() -> None:
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(300, 60)).astype(np.float32), rng.integers(0, 2, 300)
    found = ens.train_heads(z, y, 64, saw_forget_data=False, seed=0, recipe=ens.HeadRecipe(epochs=30, batch=50))
    result = ulira(found.margins(z, y), found.member)
    assert result["auc"] > 0.65  # type: ignore[operator]
    fresh = rng.normal(size=(300, 60)).astype(np.float32)
    assert ulira(found.margins(fresh, y), found.member)["auc"] == pytest.approx(0.5, abs=0.02)


def test_constant_features_give_finite_heads_and_wrong_input_is_refused(digits: tuple[np.ndarray, np.ndarray]) -> None:
    z, y = digits
    assert (z.std(axis=0) == 0).any()  # Some pixels of the digits are always blank.
    found = train((np.c_[z, np.full(len(z), 0.1, np.float32)], y), heads=2)
    assert np.isfinite(found.weight).all() and np.isfinite(found.bias).all()
    with pytest.raises(ValueError, match="one label per row"):
        ens.train_heads(z, y[:-1], 4, saw_forget_data=False, seed=0)
    with pytest.raises(ValueError, match=r"\[0, 5\)"):
        ens.train_heads(z, y, 4, saw_forget_data=False, seed=0, classes=5)
    nobody = np.zeros((2, len(z)), dtype=bool)
    with pytest.raises(ValueError, match="head 0 has no row"):
        ens.train_heads(z, y, 2, saw_forget_data=False, seed=0, member=nobody)
