"""Fixture `task` for estimators on features: Gaussian classes, a head fitted to them, and class 0 to be forgotten."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from expunge.core import HeadRefit, LinearHead, Moments


@dataclass(frozen=True)
class Task:
    z: torch.Tensor
    labels: torch.Tensor
    head: LinearHead

    @property
    def forgotten(self) -> torch.Tensor:
        return self.labels == 0

    @property
    def retain(self) -> Moments:
        return Moments.of(self.z[~self.forgotten])

    @property
    def forget(self) -> Moments:
        return Moments.of(self.z[self.forgotten])

    def probe(self, z: torch.Tensor) -> float:
        """Return the balanced accuracy of a linear probe of `z` for the forgotten class.

        The probe learns from one half of the rows and is scored on the other.
        """
        train, forgotten = torch.arange(len(z)) % 2 == 0, self.forgotten
        model = LogisticRegression(class_weight="balanced", max_iter=2000)
        model.fit(z[train].numpy(), forgotten[train].numpy())
        guess = torch.from_numpy(model.predict(z[~train].numpy()))
        truth = forgotten[~train]
        return float(0.5 * (guess[truth].double().mean() + (~guess[~truth]).double().mean()))


@pytest.fixture(scope="session")
def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    means = 1.3 * torch.randn(5, 16, generator=generator, dtype=torch.float64)
    labels = torch.arange(5).repeat_interleave(240)
    z = means[labels] + torch.randn(1200, 16, generator=generator, dtype=torch.float64) + 0.5
    zero = LinearHead(torch.zeros(5, 16), torch.zeros(5))
    return Task(z, labels, HeadRefit(l2=1e-3).fit(zero, z, labels).head_)
