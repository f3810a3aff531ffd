"""Representation Unlearning without retained data (arXiv 2601.21564, regime b): head rows serve as class proxies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from expunge.core.estimator import Estimator, History
from expunge.core.facts import Facts
from expunge.core.guard import class_contrasts, distortion_from_moments, refuse_collapse
from expunge.core.head import LinearHead, class_indices
from expunge.core.maps import AffineMap, FeatureMap
from expunge.core.moments import Moments
from expunge.core.representation import LeastSquares, check_choice, forget_weight, step_count, with_noise
from expunge.core.representation_mlp import Init, Network, add_noise, shuffled_batches

Proxies = Literal["raw", "scaled", "class-means"]


class ZeroShot(Estimator):
    """Base class of both maps: class proxies, class shares, and the collapse guard.

    L = sum over retained c of p_c E ||f(w_c + e) - w_c||^2 + beta E_f sum over all c of pi_c ||f(z) - w_c||^2

    `w_c` is the proxy of class c, `p` and `pi` are the shares of retained and of all training rows.

    proxies     "raw": head rows, as published; "scaled": head rows scaled to the root mean square norm of the forgotten
                features, because the norms of head rows and features can differ by an order of magnitude;
                "class-means": the feature means given to `fit`
    max_distortion  the collapse guard: the largest accepted distortion of the map through the head's contrasts. It is
                measured on the retained moments where an affine map's `fit` gets them, else on the proxies of the
                retained classes (raw ones are scaled first); None disables the guard

    Noise is added in the retain term only. The released code also adds it to the forgotten features at every step; its
    published runs have noise 0, for which the two agree. Fitted: `map_`, `distortion_`, `steps_`, `history_` (the loss
    at Adam's steps), `proxies_ (C, d)`.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("features", "head"), "map", "features only", "arXiv 2601.21564"
    )
    map_: FeatureMap
    distortion_: float
    steps_: int
    history_: History
    proxies_: Tensor
    proxies: Proxies
    max_distortion: float | None

    def _shares(
        self,
        forget: Moments,
        head: LinearHead,
        class_counts: Tensor | Sequence[int],
        forget_classes: int | Sequence[int] | None,
        class_means: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Set `proxies_`, and return the shares of retained classes `(C,)` and the mean proxy `(d,)`."""
        counts = torch.as_tensor(class_counts, dtype=torch.float64, device=forget.device)
        if counts.shape != (head.num_classes,):
            raise ValueError(f"class_counts must have {head.num_classes} entries, got {tuple(counts.shape)}")
        self.proxies_ = self._proxies(forget, head, class_means)
        remaining = counts.clone()
        if forget_classes is not None:
            remaining[class_indices(forget_classes, head.num_classes)] = 0
        return remaining / remaining.sum(), counts / counts.sum() @ self.proxies_

    def _proxies(self, forget: Moments, head: LinearHead, class_means: Tensor | None) -> Tensor:
        check_choice("proxies", self.proxies, ("raw", "scaled", "class-means"))
        if self.proxies == "class-means":
            if class_means is None or class_means.shape != head.weight.shape:
                raise ValueError(f"proxies 'class-means' need class_means of the shape {tuple(head.weight.shape)}")
            return class_means.to(forget.S)
        rows = head.weight.to(forget.S)
        return rows * _norm_ratio(forget, rows) if self.proxies == "scaled" else rows

    def _guarded(
        self, fitted: FeatureMap, forget: Moments, head: LinearHead, retained_shares: Tensor, retain: Moments | None
    ) -> FeatureMap:
        """Set `distortion_` and return the map. Raises CollapseError where `max_distortion` is exceeded."""
        self.distortion_ = self._distortion(fitted, forget, head, retained_shares, retain)
        refuse_collapse(self.distortion_, self.max_distortion, type(self).__name__)
        return fitted

    def _distortion(
        self, fitted: FeatureMap, forget: Moments, head: LinearHead, retained_shares: Tensor, retain: Moments | None
    ) -> float:
        if retain is not None and isinstance(fitted, AffineMap):
            return distortion_from_moments(fitted, retain, head)
        points = self.proxies_ * _norm_ratio(forget, self.proxies_) if self.proxies == "raw" else self.proxies_
        contrasts = class_contrasts(head).to(points)
        change = (fitted(points) - points) @ contrasts.T
        centred = (points - retained_shares @ points) @ contrasts.T
        return float(retained_shares @ change.square().sum(1)) / float(retained_shares @ centred.square().sum(1))


class RepresentationZeroShot(ZeroShot):
    """The affine map of least loss, from moments or rows, by the "exact" solver [derived] or "adam"; see ZeroShot.

    `published(...)` is the published configuration. Also fitted: `objective_`, the loss without the constant variance
    of the proxies.
    """

    objective_: float

    def __init__(
        self,
        beta: float = 0.01,
        solver: Literal["exact", "adam"] = "exact",
        proxies: Proxies = "scaled",
        noise_scale: float = 0.0,
        steps: int | Literal["published"] = 1000,
        lr: float = 1e-3,
        epochs: int = 10,
        batch_size: int = 256,
        max_distortion: float | None = 0.5,
    ) -> None:
        self.beta = beta
        self.solver = solver
        self.proxies = proxies
        self.noise_scale = noise_scale
        self.steps = steps
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.max_distortion = max_distortion

    @classmethod
    def published(cls, beta: float) -> RepresentationZeroShot:
        """Return the published configuration: raw head rows, Adam 1e-3, ten forget-set passes, no guard. [code]"""
        return cls(beta, "adam", "raw", steps="published", max_distortion=None)

    def fit(
        self,
        forget: Moments | Tensor,
        head: LinearHead,
        class_counts: Tensor | Sequence[int],
        forget_classes: int | Sequence[int] | None = None,
        class_means: Tensor | None = None,
        retain: Moments | None = None,
    ) -> RepresentationZeroShot:
        """Fit from the forgotten features, rows `(n, d)` or their moments.

        `class_counts (C,)` are the training rows per class. `forget_classes` is None where the request is for rows.
        `class_means (C, d)` is needed for the proxies "class-means". `retain` is only used by the guard. Raises
        ValueError where arguments do not fit together, CollapseError where `max_distortion` is exceeded.
        """
        check_choice("solver", self.solver, ("exact", "adam"))
        moments = forget if isinstance(forget, Moments) else Moments.of(forget)
        retained_shares, target = self._shares(moments, head, class_counts, forget_classes, class_means)
        self.steps_ = step_count(self.steps, self.epochs, moments.n, self.batch_size) if self.solver == "adam" else 0
        problem = zero_shot_problem(moments, self.proxies_, retained_shares, target, self.beta, self.noise_scale)
        m, self.history_ = (problem.solve(), []) if self.solver == "exact" else problem.adam(self.steps_, self.lr)
        self.objective_ = problem.objective(m)
        self.map_ = self._guarded(AffineMap(m[:, :-1], m[:, -1]), moments, head, retained_shares, retain)
        return self


class RepresentationZeroShotMlp(ZeroShot):
    """A ReLU network of `hidden` widths, trained on rows by Adam; see ZeroShot and RepresentationMlp.

    `published(...)` is the published configuration.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (512,),
        beta: float = 0.01,
        proxies: Proxies = "scaled",
        init: Init = "identity-residual",
        noise_scale: float = 0.0,
        steps: int | Literal["published"] = 1000,
        lr: float = 1e-3,
        epochs: int = 10,
        batch_size: int = 256,
        seed: int = 0,
        max_distortion: float | None = 0.5,
    ) -> None:
        self.hidden = hidden
        self.beta = beta
        self.proxies = proxies
        self.init = init
        self.noise_scale = noise_scale
        self.steps = steps
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed
        self.max_distortion = max_distortion

    @classmethod
    def published(cls, beta: float, seed: int = 0) -> RepresentationZeroShotMlp:
        """Return the published configuration: raw head rows, Adam 1e-3, ten forget-set passes, no guard. [code]"""
        return cls(beta=beta, proxies="raw", init="published", steps="published", seed=seed, max_distortion=None)

    def fit(
        self,
        z_forget: Tensor,
        head: LinearHead,
        class_counts: Tensor | Sequence[int],
        forget_classes: int | Sequence[int] | None = None,
        class_means: Tensor | None = None,
    ) -> RepresentationZeroShotMlp:
        """Fit to forgotten features `(n, d)`; other arguments and errors are as for RepresentationZeroShot."""
        moments = Moments.of(z_forget)
        retained_shares, target = self._shares(moments, head, class_counts, forget_classes, class_means)
        self.steps_ = step_count(self.steps, self.epochs, moments.n, self.batch_size)
        fitted = self._descend(z_forget.float(), retained_shares.float(), target.float())
        self.map_ = self._guarded(fitted, moments, head, retained_shares, None)
        return self

    def _descend(self, z_forget: Tensor, retained_shares: Tensor, goal: Tensor) -> FeatureMap:
        weight = forget_weight(self.beta, "per-dimension", z_forget.shape[1])
        generator = torch.Generator().manual_seed(self.seed)
        network = Network(z_forget.shape[1], self.hidden, self.init, generator, z_forget.device)
        forgotten = shuffled_batches(z_forget, self.batch_size, generator)
        proxies = self.proxies_.float()

        def loss() -> Tensor:
            z_f = next(forgotten)
            out = network(torch.cat([add_noise(proxies, self.noise_scale, generator), z_f]))
            retained = retained_shares @ (out[: len(proxies)] - proxies).square().sum(dim=1)
            return retained + weight * (out[len(proxies) :] - goal).square().sum(dim=1).mean()

        self.history_ = network.descend(loss, self.steps_, self.lr)
        return network.map()


def zero_shot_problem(
    forget: Moments, proxies: Tensor, retained_shares: Tensor, target: Tensor, beta: float, noise_scale: float
) -> LeastSquares:
    """Return the loss of ZeroShot as a least-squares problem; `target` is the mean proxy, sum of pi_c w_c. [derived]"""
    weight = forget_weight(beta, "per-dimension", forget.dim)
    augmented = torch.cat([proxies, proxies.new_ones(len(proxies), 1)], dim=1)
    second = forget.second(augmented=True)
    gram = augmented.T @ (retained_shares[:, None] * augmented) + weight * second
    gradient = weight * (second[:-1] - torch.outer(target, second[-1]))
    problem = LeastSquares(gram, gradient, weight * float(forget.second_about(target).trace()))
    return with_noise(problem, noise_scale**2)


def _norm_ratio(forget: Moments, rows: Tensor) -> Tensor:
    """Return the root mean square norm of the forgotten features divided by that of `rows`."""
    return (forget.second().trace() / rows.square().sum(1).mean()).sqrt()
