"""Representation Unlearning without retained data (arXiv 2601.21564, regime b): head rows stand in for classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from expunge.core.estimator import Estimator, History
from expunge.core.guard import class_contrasts, distortion_from_moments, refuse_collapse
from expunge.core.head import LinearHead, class_indices
from expunge.core.maps import AffineMap, FeatureMap
from expunge.core.moments import Moments
from expunge.core.representation import LeastSquares, check_choice, forget_weight, step_count, with_noise
from expunge.core.representation_mlp import Init, Network, add_noise, shuffled_batches

Proxies = Literal["raw", "scaled", "class-means"]


class RepresentationZeroShot(Estimator):
    """Fit from forgotten features, the head and class counts; `w_c` is the proxy of class c, `p`, `pi` its shares.

    L = sum over retained c of p_c E ||f(w_c + e) - w_c||^2 + beta E_f sum over all c of pi_c ||f(z) - w_c||^2

    kind        "linear": moments or rows, "exact" [derived] or "adam"; "mlp": rows, "adam"
    proxies     "raw": head rows, as published; "scaled": head rows brought to the forgotten features' root mean square
                norm, because head rows and features can differ in norm by an order of magnitude; "class-means": the
                feature means given to `fit`
    max_distortion  the collapse guard: the distortion of the map through the head's contrasts, on retained moments
                where `fit` gets them, else on the scaled proxies (class means) of the retained classes

    Noise enters the retain term alone. `published(...)` is the published configuration. Fitted: `map_`, `distortion_`,
    `steps_`, `history_` (the loss along Adam's steps), `proxies_ (C, d)`; `objective_` for kind "linear", without the
    proxies' variance.
    """

    map_: FeatureMap
    distortion_: float
    steps_: int
    history_: History
    proxies_: Tensor
    objective_: float

    def __init__(
        self,
        kind: Literal["linear", "mlp"] = "linear",
        beta: float = 0.01,
        solver: Literal["exact", "adam"] = "exact",
        proxies: Proxies = "scaled",
        hidden: Sequence[int] = (512,),
        init: Init = "identity-residual",
        noise_scale: float = 0.0,
        steps: int | Literal["published"] = 1000,
        lr: float = 1e-3,
        epochs: int = 10,
        batch_size: int = 256,
        seed: int = 0,
        max_distortion: float | None = 0.5,
    ) -> None:
        self.kind = kind
        self.beta = beta
        self.solver = solver
        self.proxies = proxies
        self.hidden = hidden
        self.init = init
        self.noise_scale = noise_scale
        self.steps = steps
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed
        self.max_distortion = max_distortion

    @classmethod
    def published(cls, beta: float, kind: Literal["linear", "mlp"] = "linear", seed: int = 0) -> RepresentationZeroShot:
        """The published configuration: raw head rows, Adam 1e-3, ten passes over the forget set, no guard. [code]"""
        options = {"init": "published", "steps": "published", "max_distortion": None}
        return cls(kind, beta, "adam", "raw", seed=seed, **options)  # type: ignore[arg-type]

    def fit(
        self,
        forget: Moments | Tensor,
        head: LinearHead,
        class_counts: Tensor | Sequence[int],
        forget_classes: int | Sequence[int] | None = None,
        class_means: Tensor | None = None,
        retain: Moments | None = None,
    ) -> RepresentationZeroShot:
        """`class_counts (C,)` are training rows per class; `forget_classes` is None for requests of single rows.

        `class_means (C, d)` is needed for those proxies, `retain` only sharpens the guard. Raises CollapseError.
        """
        check_choice("kind", self.kind, ("linear", "mlp"))
        check_choice("solver", self.solver, ("exact", "adam") if self.kind == "linear" else ("adam",))
        moments = forget if isinstance(forget, Moments) else Moments.of(forget)
        counts = torch.as_tensor(class_counts, dtype=torch.float64, device=moments.device)
        if counts.shape != (head.num_classes,):
            raise ValueError(f"class_counts must have {head.num_classes} entries, got {tuple(counts.shape)}")
        self.proxies_ = self._proxies(moments, head, class_means)
        kept = counts.clone()
        if forget_classes is not None:
            kept[class_indices(forget_classes, head.num_classes)] = 0
        shares, kept_shares = counts / counts.sum(), kept / kept.sum()
        target = shares @ self.proxies_
        self.steps_ = step_count(self.steps, self.epochs, moments.n, self.batch_size) if self.solver == "adam" else 0
        if self.kind == "linear":
            fitted: FeatureMap = self._fit_linear(moments, kept_shares, target)
        else:
            if isinstance(forget, Moments):
                raise ValueError("kind 'mlp' needs the forgotten features themselves, not their moments")
            fitted = self._fit_mlp(forget.float(), kept_shares, target)
        self.distortion_ = self._distortion(fitted, moments, head, kept_shares, retain)
        refuse_collapse(self.distortion_, self.max_distortion, "RepresentationZeroShot")
        self.map_ = fitted
        return self

    def _proxies(self, forget: Moments, head: LinearHead, class_means: Tensor | None) -> Tensor:
        check_choice("proxies", self.proxies, ("raw", "scaled", "class-means"))
        if self.proxies == "class-means":
            if class_means is None or class_means.shape != head.weight.shape:
                raise ValueError(f"proxies 'class-means' need class_means {tuple(head.weight.shape)}")
            return class_means.to(forget.S)
        rows = head.weight.to(forget.S)
        return rows * _norm_ratio(forget, rows) if self.proxies == "scaled" else rows

    def _fit_linear(self, forget: Moments, kept_shares: Tensor, target: Tensor) -> AffineMap:
        problem = zero_shot_problem(forget, self.proxies_, kept_shares, target, self.beta, self.noise_scale)
        m, self.history_ = (problem.solve(), []) if self.solver == "exact" else problem.adam(self.steps_, self.lr)
        self.objective_ = problem.objective(m)
        return AffineMap(m[:, :-1], m[:, -1])

    def _fit_mlp(self, z_forget: Tensor, kept_shares: Tensor, target: Tensor) -> FeatureMap:
        weight = forget_weight(self.beta, "per-dimension", z_forget.shape[1])
        generator = torch.Generator().manual_seed(self.seed)
        network = Network(z_forget.shape[1], self.hidden, self.init, generator, z_forget.device)
        forgotten = shuffled_batches(z_forget, self.batch_size, generator)
        proxies, kept, goal = self.proxies_.float(), kept_shares.float(), target.float()

        def loss() -> Tensor:
            z_f = next(forgotten)
            out = network(torch.cat([add_noise(proxies, self.noise_scale, generator), z_f]))
            retained = kept @ (out[: len(proxies)] - proxies).square().sum(dim=1)
            return retained + weight * (out[len(proxies) :] - goal).square().sum(dim=1).mean()

        self.history_ = network.descend(loss, self.steps_, self.lr)
        return network.map()

    def _distortion(
        self, fitted: FeatureMap, forget: Moments, head: LinearHead, kept_shares: Tensor, retain: Moments | None
    ) -> float:
        if retain is not None and isinstance(fitted, AffineMap):
            return distortion_from_moments(fitted, retain, head)
        points = self.proxies_ * _norm_ratio(forget, self.proxies_) if self.proxies == "raw" else self.proxies_
        contrasts = class_contrasts(head).to(points)
        change = (fitted(points) - points) @ contrasts.T
        centred = (points - kept_shares @ points) @ contrasts.T
        return float(kept_shares @ change.square().sum(1)) / float(kept_shares @ centred.square().sum(1))


def zero_shot_problem(
    forget: Moments, proxies: Tensor, kept_shares: Tensor, target: Tensor, beta: float, noise_scale: float
) -> LeastSquares:
    """The loss above as a least-squares problem; `target` is the mean proxy, sum over all c of pi_c w_c. [derived]"""
    weight = forget_weight(beta, "per-dimension", forget.dim)
    augmented = torch.cat([proxies, proxies.new_ones(len(proxies), 1)], dim=1)
    second = forget.second(augmented=True)
    gram = augmented.T @ (kept_shares[:, None] * augmented) + weight * second
    gradient = weight * (second[:-1] - torch.outer(target, second[-1]))
    problem = LeastSquares(gram, gradient, weight * float(forget.second_about(target).trace()))
    return with_noise(problem, noise_scale**2)


def _norm_ratio(forget: Moments, rows: Tensor) -> Tensor:
    """Root mean square norm of the forgotten features over that of `rows`."""
    return (forget.second().trace() / rows.square().sum(1).mean()).sqrt()
