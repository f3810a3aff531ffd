"""Representation Unlearning with class proxies instead of retained rows (regime b).

The reference is the published loss, differentiated by autograd.
"""

from __future__ import annotations

import pytest
import torch

from expunge.core import LinearHead, Moments, RepresentationZeroShot, RepresentationZeroShotMlp
from expunge.system.errors import CollapseError, ConfigError

C, D = 4, 10
COUNTS = [100, 50, 30, 20]


def head() -> LinearHead:
    return LinearHead(torch.randn(C, D, generator=torch.Generator().manual_seed(1)), torch.zeros(C))


def forgotten(n: int = 80) -> torch.Tensor:
    noise = torch.randn(n, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return 6 * head().weight[1].double() + noise


def loss(m: torch.Tensor, proxies: torch.Tensor, forget_classes: list[int], beta: float) -> torch.Tensor:
    """Return the published loss, computed term by term."""
    retained = {c: n for c, n in enumerate(COUNTS) if c not in forget_classes}

    def f(z: torch.Tensor) -> torch.Tensor:
        return z @ m[:, :-1].T + m[:, -1]

    retain = sum(n / sum(retained.values()) * (f(proxies[c]) - proxies[c]).square().sum() for c, n in retained.items())
    away = [n / sum(COUNTS) * (f(forgotten()) - proxies[c]).square().sum(dim=1).mean() for c, n in enumerate(COUNTS)]
    return torch.as_tensor(retain) + beta * torch.stack(away).sum()


@pytest.mark.parametrize("forget_classes", [[1], [1, 3], []])
@pytest.mark.parametrize("proxies", ["raw", "scaled", "class-means"])
def test_the_exact_map_zeroes_the_gradient(forget_classes: list[int], proxies: str) -> None:
    means = torch.randn(C, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    zero_shot = RepresentationZeroShot(beta=0.3, proxies=proxies, max_distortion=None)  # type: ignore[arg-type]
    zero_shot.fit(Moments.of(forgotten()), head(), COUNTS, forget_classes or None, class_means=means)
    m = torch.cat([zero_shot.map_.weight, zero_shot.map_.bias[:, None]], dim=1).requires_grad_()  # type: ignore[attr-defined]
    points = zero_shot.proxies_
    value = loss(m, points, forget_classes, 0.3)
    (gradient,) = torch.autograd.grad(value, m)
    scale = float(forgotten().square().sum(dim=1).mean())
    assert float(gradient.abs().max()) < 1e-11 * scale
    shares = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    variance = float(shares @ (points - shares @ points).square().sum(dim=1))
    assert zero_shot.objective_ == pytest.approx(value.item() - 0.3 * variance, rel=1e-9)


def test_proxies_are_what_their_names_say() -> None:
    moments = Moments.of(forgotten())
    raw, scaled = (
        RepresentationZeroShot(proxies=p, max_distortion=None).fit(moments, head(), COUNTS, 1)
        for p in ("raw", "scaled")
    )
    torch.testing.assert_close(raw.proxies_, head().weight.double())
    assert float(scaled.proxies_.square().sum(1).mean()) == pytest.approx(float(forgotten().square().sum(1).mean()))
    with pytest.raises(ValueError, match="class_means"):
        RepresentationZeroShot(proxies="class-means").fit(moments, head(), COUNTS, 1)


def test_adam_and_rows_agree_with_the_exact_map() -> None:
    """In directions that no row spans the exact map is the identity, and Adam does not leave the identity there."""
    z = forgotten()
    exact = RepresentationZeroShot(beta=0.3, max_distortion=None).fit(Moments.of(z), head(), COUNTS, 1)
    from_rows = RepresentationZeroShot(beta=0.3, max_distortion=None).fit(z, head(), COUNTS, 1)
    torch.testing.assert_close(from_rows.map_(z), exact.map_(z))
    adam = RepresentationZeroShot(beta=0.3, solver="adam", steps=8000, lr=3e-3, max_distortion=None)
    adam.fit(Moments.of(z), head(), COUNTS, 1)
    assert exact.objective_ <= adam.objective_ <= 1.05 * exact.objective_


def test_the_network_moves_forgotten_features_to_the_mean_proxy() -> None:
    z = forgotten().float()
    fitted = RepresentationZeroShotMlp((32,), beta=1.0, steps=500).fit(z, head(), COUNTS, 1)
    goal = (torch.tensor(COUNTS) / sum(COUNTS) @ fitted.proxies_.float()).expand_as(z)
    assert float((fitted.map_(z) - goal).norm()) < 0.2 * float((z - goal).norm())
    retained = fitted.proxies_[[0, 2, 3]].float()
    assert float((fitted.map_(retained) - retained).norm()) < 0.1 * float(retained.norm())


def test_raw_proxies_far_below_the_features_norm_ruin_the_map_and_are_refused() -> None:
    """Head rows with a tenth of the features' norm protect no retained feature.

    The guard must notice this without retained features.
    """
    z = 10 * torch.randn(4000, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with pytest.raises(CollapseError, match="RepresentationZeroShot"):
        RepresentationZeroShot(beta=1.0, proxies="raw").fit(Moments.of(z), head(), COUNTS)
    sees = RepresentationZeroShot(beta=1.0, proxies="raw", max_distortion=None)
    sees.fit(Moments.of(z), head(), COUNTS, retain=Moments.of(z))
    assert sees.distortion_ > 0.5


def test_the_published_configuration_sets_the_steps_and_bad_arguments_are_refused() -> None:
    published = RepresentationZeroShot.published(0.01)
    published.fit(torch.cat([forgotten()] * 10), head(), COUNTS, 1)
    assert published.steps_ == 10 * 4
    network = RepresentationZeroShotMlp.published(0.01).fit(torch.cat([forgotten()] * 10).float(), head(), COUNTS, 1)
    assert network.steps_ == 10 * 4 and network.proxies == "raw"
    with pytest.raises(ConfigError, match="solver"):
        RepresentationZeroShot(solver="newton").fit(forgotten(), head(), COUNTS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="4 entries"):
        RepresentationZeroShot().fit(Moments.of(forgotten()), head(), [1, 2])
    with pytest.raises(ValueError, match="forgotten classes must be among"):
        RepresentationZeroShot().fit(Moments.of(forgotten()), head(), COUNTS, 7)
