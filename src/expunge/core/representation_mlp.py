"""Representation Unlearning with a small ReLU network (arXiv 2601.21564, regime a), from feature rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from expunge.core.estimator import Estimator, History, is_recorded
from expunge.core.facts import Facts
from expunge.core.guard import distortion, refuse_collapse
from expunge.core.head import LinearHead
from expunge.core.maps import MlpMap
from expunge.core.moments import as_features
from expunge.core.representation import Loss, check_choice, forget_weight, step_count

Init = Literal["identity-residual", "published"]
GUARD_ROWS = 8192


class RepresentationMlp(Estimator):
    """A ReLU network, trained by Adam, that sends forgotten features to the global mean and keeps retained ones.

    L = 1/d E_r ||f(z + e) - z||^2 + beta k E_f ||f(z + e) - mu||^2,   mu the mean of all rows

    The published loss compares every forgotten row with a random batch of reference rows. Its expectation exceeds this
    loss by the constant `beta k tr Cov(z_ref)`, so the pairwise tensor is not needed, and the gradient has the same
    expectation with less variance. [derived]

    hidden          widths of the hidden layers, one or two as published
    init            "identity-residual": z + g(z), with g initially zero; "published": g(z) with torch's default
                    initialisation
    loss, steps, lr, epochs, batch_size, noise_scale, max_distortion   as in RepresentationLinear

    `RepresentationMlp.published(beta)` is the published configuration. Fitted: `map_`, `distortion_`, `steps_`,
    `history_` (the losses of single batches).
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("features", "head"), "map", "features only", "arXiv 2601.21564"
    )
    map_: MlpMap
    distortion_: float
    steps_: int
    history_: History

    def __init__(
        self,
        hidden: Sequence[int] = (512,),
        beta: float = 0.1,
        init: Init = "identity-residual",
        loss: Loss = "per-dimension",
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
        self.init = init
        self.loss = loss
        self.noise_scale = noise_scale
        self.steps = steps
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed
        self.max_distortion = max_distortion

    @classmethod
    def published(
        cls, beta: float, hidden: Sequence[int] = (512,), epochs: int = 10, seed: int = 0
    ) -> RepresentationMlp:
        """Return the published configuration; hidden is 512 for CIFAR-10 and 1024 elsewhere. [code]"""
        options = {"init": "published", "loss": "published", "steps": "published", "max_distortion": None}
        return cls(hidden, beta, epochs=epochs, seed=seed, **options)  # type: ignore[arg-type]

    def fit(self, z_retain: Tensor, z_forget: Tensor, head: LinearHead | None = None) -> RepresentationMlp:
        """Fit from retained and forgotten features `(n, d)`. Raises CollapseError, see `max_distortion`."""
        z_retain = as_features(z_retain).float()
        z_forget = as_features(z_forget, z_retain.shape[1]).float()
        dim, rows = z_retain.shape[1], z_retain.shape[0] + z_forget.shape[0]
        mean = ((z_retain.sum(0, dtype=torch.float64) + z_forget.sum(0, dtype=torch.float64)) / rows).float()
        weight = forget_weight(self.beta, self.loss, dim)
        generator = torch.Generator().manual_seed(self.seed)
        network = Network(dim, self.hidden, self.init, generator, z_retain.device)
        self.steps_ = step_count(self.steps, self.epochs, z_forget.shape[0], self.batch_size)
        forgotten = shuffled_batches(z_forget, self.batch_size, generator)

        def loss() -> Tensor:
            z_f = next(forgotten)
            picks = torch.randint(z_retain.shape[0], (min(self.batch_size, z_retain.shape[0]),), generator=generator)
            z_r = z_retain[picks.to(z_retain.device)]
            inputs = add_noise(torch.cat([z_r, z_f]), self.noise_scale, generator)
            out = network(inputs)
            return mean_loss(out[: len(z_r)], z_r, out[len(z_r) :], mean, weight)

        self.history_ = network.descend(loss, self.steps_, self.lr)
        fitted = network.map()
        sample = z_retain[:: max(1, z_retain.shape[0] // GUARD_ROWS)]
        self.distortion_ = distortion(fitted, sample, head)
        refuse_collapse(self.distortion_, self.max_distortion, "RepresentationMlp")
        self.map_ = fitted
        return self


def mean_loss(out_retain: Tensor, z_retain: Tensor, out_forget: Tensor, mean: Tensor, weight: float) -> Tensor:
    """Return `1/d (E_r ||f - z||^2 + w E_f ||f - mu||^2)` over a batch of retained and one of forgotten rows."""
    return (out_retain - z_retain).square().mean() + weight * (out_forget - mean).square().mean()


class Network:
    """The network during training: parameters, forward pass and Adam."""

    def __init__(
        self, dim: int, hidden: Sequence[int], init: Init, generator: torch.Generator, device: torch.device
    ) -> None:
        check_choice("init", init, ("identity-residual", "published"))
        self.residual = init == "identity-residual"
        widths = [dim, *hidden, dim]
        self.weights, self.biases = [], []
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            # torch's default initialisation of a linear layer: weight and bias uniform within 1/sqrt(fan_in).
            bound = fan_in**-0.5
            weight = torch.empty(fan_out, fan_in).uniform_(-bound, bound, generator=generator)
            bias = torch.empty(fan_out).uniform_(-bound, bound, generator=generator)
            if self.residual and i == len(hidden):
                weight.zero_()
                bias.zero_()
            self.weights.append(weight.to(device).requires_grad_())
            self.biases.append(bias.to(device).requires_grad_())

    def __call__(self, z: Tensor) -> Tensor:
        """Return the mapped features `(n, d)` of `z (n, d)`."""
        out = z
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            out = linear(torch.relu(out) if i else out, weight, bias)
        return z + out if self.residual else out

    def descend(self, loss: Callable[[], Tensor], steps: int, lr: float, decay: bool = False) -> History:
        """Take `steps` steps of Adam at a constant rate, or with `decay` one that falls linearly to zero.

        Returns the history of the losses of single batches.
        """
        optimiser = torch.optim.Adam([*self.weights, *self.biases], lr=lr)
        history: History = []
        for step in range(1, steps + 1):
            if decay:
                optimiser.param_groups[0]["lr"] = lr * (1 - (step - 1) / steps)
            optimiser.zero_grad()
            value = loss()
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if is_recorded(step, steps):
                history.append({"step": step, "loss": value.item()})
        return history

    def map(self) -> MlpMap:
        """Return the network as a map."""
        return MlpMap(tuple(self.weights), tuple(self.biases), self.residual)


def shuffled_batches(z: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of rows without end, in a new random order in each pass."""
    while True:
        for picks in torch.split(torch.randperm(z.shape[0], generator=generator), batch_size):
            yield z[picks.to(z.device)]


def add_noise(z: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Return `z (n, d)` plus normal noise of standard deviation `scale`; with scale 0 `z` itself."""
    if not scale:
        return z
    return z + scale * torch.randn(z.shape, generator=generator).to(z.device)
