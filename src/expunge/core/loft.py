"""LOFT: keep the subspace that explains the retained but not the forgotten features (arXiv 2601.22456)."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from expunge.core.estimator import Estimator, History, is_recorded
from expunge.core.facts import Facts
from expunge.core.maps import AffineMap
from expunge.core.moments import Moments
from expunge.core.subspace import Matrix, minimise_subspace_objective
from expunge.system.errors import ConfigError, DataError


class Loft(Estimator):
    """Minimise `(1 - tr(U^T Sr U)/tr Sr)^2 + (tr(U^T Sf U)/tr Sf)^2` over orthonormal `U (d, s)`.

    The fitted map is `z' = U U^T z`.

    `Sr`, `Sf` are the covariances (ddof 1) of retained and forgotten features, each about its own mean. [paper, code]

    rank            s, or "auto": the smallest s for which the leading s eigenvectors of `Sr` explain the share `energy`
                    of the retained variance
    solver          "exact": a global optimum with a certificate, see `expunge.core.subspace` [derived];
                    "riemannian-adam": the published solver, geoopt's Riemannian Adam on the canonical Stiefel manifold
                    in float32, from a random start, with `steps` full-batch steps at `lr`
    second_moment   "centred" as published; "uncentred": the second moment of forgotten features about the map's fixed
                    point (the origin, or the retained mean with `restore_mean`), which includes the mean of a
                    forgotten class
    restore_mean    project about the retained mean, `z' = U U^T (z - m) + m`; False projects about the origin, as
                    published

    Fitted: `basis_ (d, s)`, `rank_`, `objective_`, `retained_` and `forgotten_` (the kept shares of variance),
    `angle_` (radians, `tan = forgotten / (1 - retained)`), `gap_` (exact solver only: an upper bound on how much the
    objective could still fall), `history_` (published solver only), `map_`.
    """

    facts: ClassVar[Facts] = Facts(("classes", "rows"), ("moments",), "map", "closed form", "arXiv 2601.22456")
    basis_: Tensor
    rank_: int
    objective_: float
    retained_: float
    forgotten_: float
    angle_: float
    gap_: float
    history_: History
    map_: AffineMap

    def __init__(
        self,
        rank: int | Literal["auto"],
        solver: Literal["exact", "riemannian-adam"] = "exact",
        steps: int = 100,
        lr: float = 1.0,
        seed: int = 0,
        second_moment: Literal["centred", "uncentred"] = "centred",
        restore_mean: bool = False,
        energy: float = 0.99,
    ) -> None:
        self.rank = rank
        self.solver = solver
        self.steps = steps
        self.lr = lr
        self.seed = seed
        self.second_moment = second_moment
        self.restore_mean = restore_mean
        self.energy = energy

    def fit(self, retain: Moments, forget: Moments) -> Loft:
        """Fit from the moments of retained and forgotten features, each of at least two rows.

        Raises ConfigError for an unusable argument, and DataError where features do not vary.
        """
        self._check(retain.dim)
        mean = retain.mean if self.restore_mean else torch.zeros_like(retain.mean)
        a = _unit_trace(retain.cov(), "retained")
        spread = forget.cov() if self.second_moment == "centred" else forget.second_about(mean)
        b = _unit_trace(spread, "forgotten")
        self.rank_ = automatic_rank(a, self.energy) if self.rank == "auto" else self.rank
        if self.solver == "exact":
            found = minimise_subspace_objective(a, b, self.rank_)
            basis, self.retained_, self.forgotten_, self.gap_ = found.basis, found.retained, found.forgotten, found.gap
            self.history_ = []
        else:
            basis, self.history_ = riemannian_adam(a, b, self.rank_, self.steps, self.lr, self.seed)
            self.retained_, self.forgotten_ = float(np.sum(basis * (a @ basis))), float(np.sum(basis * (b @ basis)))
        self.objective_ = (1 - self.retained_) ** 2 + self.forgotten_**2
        self.angle_ = float(np.arctan2(max(self.forgotten_, 0.0), max(1 - self.retained_, 0.0)))
        self.basis_ = torch.from_numpy(np.ascontiguousarray(basis)).to(retain.device)
        shift = mean - self.basis_ @ (self.basis_.T @ mean)
        self.map_ = AffineMap(self.basis_, shift, "keep")
        return self

    def _check(self, dim: int) -> None:
        if self.rank != "auto" and not 1 <= self.rank <= dim:
            raise ConfigError(f"rank must be 'auto' or between 1 and the feature dimension {dim}, got {self.rank!r}")
        if self.solver not in ("exact", "riemannian-adam"):
            raise ConfigError(f"solver must be exact or riemannian-adam, got {self.solver!r}")
        if self.second_moment not in ("centred", "uncentred"):
            raise ConfigError(f"second_moment must be centred or uncentred, got {self.second_moment!r}")
        if not 0 < self.energy <= 1:
            raise ConfigError(f"energy must be in (0, 1], got {self.energy!r}")


def automatic_rank(cov: Matrix, energy: float) -> int:
    """Return the smallest number of leading eigenvalues of `cov` whose sum is the share `energy` of its trace."""
    values = np.clip(np.linalg.eigvalsh(cov)[::-1], 0.0, None)
    return int(np.searchsorted(np.cumsum(values), energy * values.sum() * (1 - 1e-12))) + 1


def riemannian_adam(a: Matrix, b: Matrix, rank: int, steps: int, lr: float, seed: int) -> tuple[Matrix, History]:
    """Run the published solver: geoopt's RiemannianAdam from a random orthonormal start, canonical metric, float32.

    The gradient of the published weight decay projects to zero on this manifold, so it is left out. [code]
    """
    import geoopt

    generator = torch.Generator().manual_seed(seed)
    start, _ = torch.linalg.qr(torch.randn(a.shape[0], rank, generator=generator))
    basis = geoopt.ManifoldParameter(start, manifold=geoopt.Stiefel(canonical=True))
    optimiser = geoopt.optim.RiemannianAdam([basis], lr=lr)
    sr, sf = torch.from_numpy(a).float(), torch.from_numpy(b).float()
    history: History = []
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        loss = (1 - (basis * (sr @ basis)).sum()) ** 2 + (basis * (sf @ basis)).sum() ** 2
        loss.backward()
        optimiser.step()
        if is_recorded(step, steps):
            history.append({"step": step, "loss": loss.item()})
    # Steps in float32 drift off the manifold by about 1e-6, so the result is made orthonormal again.
    result, _ = torch.linalg.qr(basis.detach().double())
    orthonormal: Matrix = result.numpy()
    return orthonormal, history


def _unit_trace(cov: Tensor, which: str) -> Matrix:
    trace = float(cov.trace())
    if not trace > 0:
        raise DataError(
            f"the {which} features have no variance, so they span no subspace; check that they were extracted"
        )
    scaled: Matrix = (cov / trace).cpu().numpy()
    return scaled
