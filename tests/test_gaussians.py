"""The toy picture shows what its maps do to Gaussians, measured on rows that no map was fitted to."""

from __future__ import annotations

import pytest
import torch

from expunge.reproduce.gaussians import CLASSES, draw, make_features, run_toy


@pytest.mark.slow
def test_networks_forget_one_gaussian_and_keep_five() -> None:
    head, labels, panels = run_toy(seed=0)
    before, linear, standard, zero_shot = panels
    assert before.retained > 0.99 and before.forgotten > 0.99 and before.confidence > 0.9
    for panel in (standard, zero_shot):
        assert panel.retained > 0.98
        assert panel.distance < 0.05  # Forgotten rows lie at the mean of all rows.
        assert panel.confidence < 2 / CLASSES
    # In two dimensions a linear map cannot move one of six points of a circle and keep the others.
    assert linear.retained < 0.9
    assert draw(head, labels, panels) == draw(head, labels, panels)


def test_features_are_drawn_around_a_circle() -> None:
    z, labels = make_features(seed=3, rows=2000)
    means = torch.stack([z[labels == c].mean(0) for c in range(CLASSES)])
    assert torch.allclose(means.norm(dim=1), torch.full((CLASSES,), 4.0), atol=0.05)
    assert torch.allclose(means.sum(0), torch.zeros(2), atol=0.1)
