"""Representation Unlearning with retained rows (regime a), for the exact linear map and for the network.

The reference is the published loss over all pairs, differentiated by autograd.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.core import LinearHead, Moments, RepresentationLinear, RepresentationMlp
from expunge.core.representation import solve_gram, two_set_problem
from expunge.core.representation_mlp import Network, mean_loss
from expunge.system.errors import CollapseError, ConfigError

D = 6


def data(n: int = 300, m: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(D, D, generator=generator, dtype=torch.float64)
    z_r = torch.randn(n, D, generator=generator, dtype=torch.float64) @ mix + 1.0
    z_f = 0.5 * torch.randn(m, D, generator=generator, dtype=torch.float64) @ mix + 4.0
    return z_r, z_f


def fit(z_r: torch.Tensor, z_f: torch.Tensor, **options: object) -> RepresentationLinear:
    return RepresentationLinear(max_distortion=None, **options).fit(Moments.of(z_r), Moments.of(z_f))  # type: ignore[arg-type]


def pairwise_loss(m: torch.Tensor, z_r: torch.Tensor, z_f: torch.Tensor, weight: float) -> torch.Tensor:
    """Return the published loss over all pairs, with the retain term averaged over dimensions."""
    out_r, out_f = z_r @ m[:, :-1].T + m[:, -1], z_f @ m[:, :-1].T + m[:, -1]
    reference = torch.cat([z_r, z_f])
    pairs = (out_f[:, None] - reference[None]).square().sum(dim=2).mean()
    return (out_r - z_r).square().mean() + weight * pairs


@pytest.mark.parametrize("loss", ["per-dimension", "published"])
@pytest.mark.parametrize("beta", [0.01, 1.0, 30.0])
def test_the_exact_map_zeroes_the_gradient_of_the_pairwise_loss(beta: float, loss: str) -> None:
    z_r, z_f = data()
    ru = fit(z_r, z_f, beta=beta, loss=loss)
    m = torch.cat([ru.map_.weight, ru.map_.bias[:, None]], dim=1).requires_grad_()
    value = pairwise_loss(m, z_r, z_f, beta / D if loss == "per-dimension" else beta)
    (gradient,) = torch.autograd.grad(value, m)
    assert float(gradient.abs().max()) < 1e-11 * max(1.0, beta * D)
    reference = torch.cat([z_r, z_f])
    constant = float((reference - reference.mean(0)).square().sum(1).mean()) * (
        beta / D if loss == "per-dimension" else beta
    )
    assert ru.objective_ == pytest.approx(value.item() - constant, rel=1e-9)


def test_noise_is_a_ridge_on_the_weight() -> None:
    """The corners of a cube have the first two moments of the noise, so their mean loss is the expected noisy loss."""
    z_r, z_f = data(40, 20)
    scale, beta = 0.3, 2.0
    corners = scale * torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * D)
    ru = fit(z_r, z_f, beta=beta, noise_scale=scale)
    m = torch.cat([ru.map_.weight, ru.map_.bias[:, None]], dim=1).requires_grad_()

    def out(z: torch.Tensor) -> torch.Tensor:
        return (z[:, None] + corners[None]) @ m[:, :-1].T + m[:, -1]

    mean = torch.cat([z_r, z_f]).mean(dim=0)
    value = (out(z_r) - z_r[:, None]).square().mean() + beta * (out(z_f) - mean).square().mean()
    (gradient,) = torch.autograd.grad(value, m)
    assert float(gradient.abs().max()) < 1e-11
    assert ru.objective_ == pytest.approx(value.item(), rel=1e-10)


@pytest.mark.slow
def test_adam_converges_to_the_exact_map_from_above() -> None:
    z_r, z_f = data()
    exact = fit(z_r, z_f, beta=0.5)
    few, many = (fit(z_r, z_f, beta=0.5, solver="adam", steps=n, lr=3e-3) for n in (100, 20000))
    assert exact.objective_ < many.objective_ < few.objective_
    assert many.objective_ == pytest.approx(exact.objective_, rel=1e-3)
    torch.testing.assert_close(many.map_.weight, exact.map_.weight, atol=0.03, rtol=0)


def test_what_descends_says_how_the_loss_fell() -> None:
    z_r, z_f = data()
    adam = fit(z_r, z_f, beta=1.0, solver="adam", steps=1000)
    steps, losses = ([point[key] for point in adam.history_] for key in ("step", "loss"))
    assert steps == [1, *range(20, 1001, 20)] and losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(adam.objective_) and fit(z_r, z_f, beta=1.0).history_ == []
    network = RepresentationMlp((32,), 1.0, steps=30, max_distortion=None).fit(z_r, z_f)
    assert [point["step"] for point in network.history_] == list(range(1, 31))
    assert network.history_[-1]["loss"] < network.history_[0]["loss"]


def test_without_a_forget_weight_nothing_moves() -> None:
    z_r, z_f = data()
    ru = fit(z_r, z_f, beta=0.0)
    assert torch.equal(ru.map_.weight, torch.eye(D, dtype=torch.float64))
    assert ru.distortion_ == 0


def test_directions_without_rows_are_left_alone() -> None:
    z_r, z_f = data()
    flat = torch.zeros(len(z_r) + len(z_f), 3, dtype=torch.float64)
    wide = torch.cat([torch.cat([z_r, z_f]), flat], dim=1)
    ru = fit(wide[: len(z_r)], wide[len(z_r) :], beta=1.0)
    torch.testing.assert_close(ru.map_.weight[D:], torch.eye(D + 3, dtype=torch.float64)[D:], atol=1e-9, rtol=0)
    narrow = fit(z_r, z_f, beta=1.0)
    torch.testing.assert_close(ru.map_(wide)[:, :D], narrow.map_(wide[:, :D]), atol=1e-8, rtol=0)


def test_solving_by_cholesky_and_by_eigenvalues_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    right = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    for gram in (x.T @ x, x[:3].T @ x[:3]):
        inside = gram @ right
        torch.testing.assert_close(gram @ solve_gram(gram, inside), inside)
        torch.testing.assert_close(solve_gram(gram, inside), torch.linalg.pinv(gram) @ inside, atol=1e-9, rtol=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100.0), shift=st.floats(-10, 10))
def test_the_map_turns_scales_and_shifts_with_the_features(seed: int, scale: float, shift: float) -> None:
    z_r, z_f = data()
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))[0]

    def move(z: torch.Tensor) -> torch.Tensor:
        return scale * z @ turn + shift

    plain, moved = fit(z_r, z_f, beta=1.0), fit(move(z_r), move(z_f), beta=1.0)
    torch.testing.assert_close(moved.map_(move(z_f)), move(plain.map_(z_f)), rtol=1e-6, atol=1e-6 * max(scale, 1.0))


def test_a_ruined_map_is_refused() -> None:
    """Randomly chosen rows are distributed as the retained ones, so a large beta shrinks all features to the mean."""
    z_r, _ = data(2000)
    retain, forget = Moments.of(z_r[200:]), Moments.of(z_r[:200])
    with pytest.raises(CollapseError, match="distorts the retained features"):
        RepresentationLinear(beta=10.0).fit(retain, forget)
    gentle = RepresentationLinear(beta=0.1).fit(retain, forget)
    moved = gentle.map_(z_r[200:]) - z_r[200:]
    spread = z_r[200:] - z_r[200:].mean(dim=0)
    assert gentle.distortion_ == pytest.approx(float(moved.square().sum() / spread.square().sum()), rel=1e-9)


def test_the_guard_looks_through_the_head_when_it_gets_one() -> None:
    z_r, z_f = data()
    head = LinearHead(torch.randn(3, D, generator=torch.Generator().manual_seed(2)), torch.zeros(3))
    ru = RepresentationLinear(beta=1.0, max_distortion=None).fit(Moments.of(z_r), Moments.of(z_f), head=head)
    w = head.weight.double() - head.weight.double().mean(dim=0)
    moved, spread = (ru.map_(z_r) - z_r) @ w.T, (z_r - z_r.mean(dim=0)) @ w.T
    assert ru.distortion_ == pytest.approx(float(moved.square().sum() / spread.square().sum()), rel=1e-9)


def test_published_configurations_take_their_steps_from_the_forget_set() -> None:
    z_r, z_f = data()
    linear = RepresentationLinear.published(0.01).fit(Moments.of(z_r), Moments.of(z_f))
    assert (linear.steps_, linear.lr, linear.loss, linear.solver) == (10, 1e-3, "published", "adam")
    mlp = RepresentationMlp.published(0.01, hidden=(8, 8)).fit(torch.cat([z_r] * 5), torch.cat([z_f] * 10))
    assert mlp.steps_ == 30
    assert not mlp.map_.residual
    assert [w.shape[0] for w in mlp.map_.weights] == [8, 8, D]


@pytest.mark.parametrize("weight", [0.1, 5.0])
def test_the_mean_loss_has_the_pairwise_losses_gradient(weight: float) -> None:
    """The gradients agree over all rows, and also when they are averaged over batches of reference rows."""
    z_r, z_f = (z.float() for z in data(50, 30))
    network = Network(D, (9,), "published", torch.Generator().manual_seed(0), z_r.device)
    parameters = [*network.weights, *network.biases]
    reference = torch.cat([z_r, z_f])
    ours = torch.autograd.grad(mean_loss(network(z_r), z_r, network(z_f), reference.mean(dim=0), weight), parameters)

    def published(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pairs = (network(z_f)[:, None] - rows[None]).square().sum(dim=2).mean()
        return torch.autograd.grad((network(z_r) - z_r).square().mean() + weight / D * pairs, parameters)

    for a, b in zip(ours, published(reference), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    batches = [published(rows) for rows in reference.split(8)]
    for i, a in enumerate(ours):
        torch.testing.assert_close(torch.stack([b[i] for b in batches]).mean(dim=0), a, rtol=1e-3, atol=1e-4)


def test_the_network_starts_as_the_identity_and_moves_only_the_forgotten() -> None:
    z_r, z_f = (z.float() for z in data())
    start = RepresentationMlp(hidden=(16,), steps=0).fit(z_r, z_f)
    assert torch.equal(start.map_(z_r), z_r)
    fitted = RepresentationMlp(hidden=(32,), beta=1.0, steps=600).fit(z_r, z_f)
    mean = torch.cat([z_r, z_f]).mean(dim=0)
    assert float((fitted.map_(z_f) - mean).norm(dim=1).mean()) < 0.4 * float((z_f - mean).norm(dim=1).mean())
    assert fitted.distortion_ < 0.1


def test_the_network_is_reproducible_and_guarded() -> None:
    z_r, z_f = (z.float() for z in data())
    one, two, other = (
        RepresentationMlp(hidden=(8,), steps=20, noise_scale=0.1, seed=s).fit(z_r, z_f) for s in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.map_.weights, two.map_.weights, strict=True))
    assert not torch.equal(one.map_.weights[0], other.map_.weights[0])
    with pytest.raises(CollapseError):
        RepresentationMlp(hidden=(8,), init="published", steps=3).fit(z_r, z_f)


def test_arguments_are_checked() -> None:
    z_r, z_f = data()
    for options in ({"solver": "sgd"}, {"loss": "sum"}, {"beta": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            fit(z_r, z_f, **options)
    with pytest.raises(ConfigError, match="init"):
        RepresentationMlp(init="zero").fit(z_r, z_f)  # type: ignore[arg-type]
    problem = two_set_problem(Moments.of(z_r), Moments.of(z_f), 1.0, 0.0)
    assert problem.objective(problem.start) == pytest.approx(problem.floor)
