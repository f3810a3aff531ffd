"""Tilted targets follow their definition, and the map of `Tilt` gives them to rows assigned to a forgotten class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import softmax

from expunge.core.head import LinearHead
from expunge.core.maps import load_map
from expunge.core.tilted import Tilt, fit_beta, similarities, tilted_target
from expunge.system.errors import DataError

G = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(6, 20, generator=G)
LOGITS = torch.randn(40, 6, generator=G, dtype=torch.float64)
LABELS = torch.full((40,), 2)
KEEP = torch.tensor([True, True, False, True, True, False])


def test_similarities_are_cosines_of_centred_rows_among_kept_classes() -> None:
    s = similarities(WEIGHT, KEEP, tau=0.5).numpy()
    w = WEIGHT.double().numpy()
    w = w - w.mean(0)
    cos = [w[2] @ w[j] / np.linalg.norm(w[2]) / np.linalg.norm(w[j]) for j in (0, 1, 3, 4)]
    np.testing.assert_allclose(s[2, [0, 1, 3, 4]], softmax(np.array(cos) / 0.5), rtol=1e-10)
    assert s[2, 2] == s[2, 5] == s[0, 0] == 0
    np.testing.assert_allclose(s.sum(1), 1)
    # With all components the similarities are exact; with fewer they are an approximation.
    np.testing.assert_allclose(similarities(WEIGHT, KEEP, 0.5, rank=5).numpy(), s, atol=1e-10)
    assert np.abs(similarities(WEIGHT, KEEP, 0.5, rank=1).numpy() - s).max() > 0.01


def test_no_tilt_is_the_target_of_delete() -> None:
    s = similarities(WEIGHT, KEEP)
    target = tilted_target(LOGITS, LABELS, KEEP, s, 0.0).numpy()
    p = softmax(LOGITS.numpy(), 1)[:, [0, 1, 3, 4]]
    np.testing.assert_allclose(target[:, [0, 1, 3, 4]], p / p.sum(1, keepdims=True), rtol=1e-12)


def test_the_target_gives_nothing_to_the_class_and_leans_on_its_neighbours() -> None:
    s = similarities(WEIGHT, KEEP)
    means = []
    for beta in (0.0, 1.0, 10.0, 1e5):
        target = tilted_target(LOGITS, LABELS, KEEP, s, beta)
        assert not target[:, [2, 5]].any()
        torch.testing.assert_close(target.sum(1), torch.ones(40, dtype=torch.float64))
        means.append(float((target @ s[2]).mean()))
    assert means == sorted(means) and len(set(means)) == 4
    assert torch.equal(target.argmax(1), s[2].argmax().expand(40)) and target.max(1).values.min() > 0.999


def test_the_target_is_the_nearest_distribution_of_its_mean_similarity() -> None:
    """The reference is the I-projection, found by a general constrained solver without the form of the tilt."""
    s = similarities(WEIGHT, KEEP).numpy()[2, [0, 1, 3, 4]]
    p = softmax(LOGITS[0, [0, 1, 3, 4]].numpy())
    t = tilted_target(LOGITS[:1], LABELS[:1], KEEP, similarities(WEIGHT, KEEP), 5.0)[0, [0, 1, 3, 4]].numpy()
    found = minimize(
        lambda q: float((q * np.log(q / p)).sum()),
        np.full(4, 0.25),
        constraints=[
            {"type": "eq", "fun": lambda q: q.sum() - 1},
            {"type": "eq", "fun": lambda q: q @ s - t @ s},
        ],
        bounds=[(1e-9, 1)] * 4,
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(found.x, t, atol=1e-5)


def test_beta_is_found_again_from_the_mean_output() -> None:
    s = similarities(WEIGHT, KEEP)
    for beta in (0.0, 0.7, 12.0):
        mean = tilted_target(LOGITS, LABELS, KEEP, s, beta).mean(0)
        mean[2] = 0.3  # Probability that the teacher leaves on the forgotten class is ignored.
        assert fit_beta(LOGITS, LABELS, KEEP, s, mean) == pytest.approx(beta, abs=1e-6)
    with pytest.raises(DataError, match="a single class"):
        fit_beta(LOGITS, torch.arange(40) % 2, KEEP, s, mean)


def test_the_map_gives_the_target_to_rows_assigned_to_the_class_and_moves_no_other(tmp_path: Path) -> None:
    head = LinearHead(WEIGHT, torch.randn(6, generator=G))
    z = torch.randn(500, 20, generator=G, dtype=torch.float64)
    fitted = Tilt([2], beta=4.0).fit(head)
    logits = head.logits(z)
    assigned = logits.argmax(1) == 2
    assert 20 < assigned.sum() < 300
    moved = fitted.map_(z)
    assert torch.equal(moved[~assigned], z[~assigned])
    keep = torch.tensor([c != 2 for c in range(6)])
    target = tilted_target(
        logits[assigned], torch.full((int(assigned.sum()),), 2), keep, similarities(WEIGHT, keep), 4.0
    )
    torch.testing.assert_close(fitted.head_.logits(moved)[assigned].softmax(1), target, atol=1e-6, rtol=1e-5)
    assert not (fitted.head_.logits(moved).argmax(1) == 2).any()

    fitted.map_.save(tmp_path)
    assert torch.equal(load_map(tmp_path)(z), moved)


def test_impossible_heads_and_classes_are_refused() -> None:
    with pytest.raises(DataError, match="not linearly independent"):
        Tilt([0]).fit(LinearHead(torch.randn(8, 3, generator=G), torch.zeros(8)))
    with pytest.raises(DataError, match="two retained classes"):
        Tilt([0]).fit(LinearHead(torch.randn(2, 3, generator=G), torch.zeros(2)))
    with pytest.raises(ValueError, match="among 0"):
        Tilt([9]).fit(LinearHead(torch.randn(3, 3, generator=G), torch.zeros(3)))
    with pytest.raises(ValueError, match="tau"):
        similarities(WEIGHT, KEEP, tau=0)
