"""Training shared by several processes: which rows each of them computes, and batch norm over all of them.

Every process holds the whole network and the order of all rows, and computes a slice of each global batch. torch's
DistributedDataParallel averages the gradients, so they are those of the whole batch. It wraps a whole network; where
only layers above a cut run, `sum_gradients` adds the gradients. Batch norm would see only a slice, and torch's
SyncBatchNorm has no CPU kernel. So batch statistics and their gradients are summed over processes here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

RANK_SEEDS = 7919  # between the seeds of processes, so that they draw different dropout


@dataclass(frozen=True)
class ProcessGroup:
    """This process is `rank` of `world_size`. If there are several, torch's process group must be initialised."""

    rank: int = 0
    world_size: int = 1

    def own(self, rows: Tensor) -> Tensor:
        """Return this process's slice of a batch. Slices differ by at most one row and may be empty."""
        return torch.tensor_split(rows, self.world_size)[self.rank] if self.world_size > 1 else rows

    def total(self, value: Tensor) -> Tensor:
        """Sum `value` in place over all processes and return it."""
        if self.world_size > 1:
            distributed.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of `parameters` by their sums over all processes; those without one are left out."""
        if self.world_size > 1:
            gradients = [p.grad for p in parameters if p.grad is not None]
            total = self.total(torch.cat([g.flatten() for g in gradients]))
            for gradient, part in zip(gradients, torch.split(total, [g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def decided(self, value: Tensor) -> Tensor:
        """Return rank 0's value, so that rounding cannot make two processes decide differently."""
        if self.world_size > 1:
            distributed.broadcast(value, 0)
        return value

    def shared(self, classifier: nn.Module) -> nn.Module:
        """Return `classifier`, wrapped so that each backward pass averages gradients over processes."""
        if self.world_size == 1:
            return classifier
        # Some weights, such as poolers, are not used by the forward pass. The reduction must not wait for their
        # gradients.
        return DistributedDataParallel(classifier, forward_sync_buffers=False, find_unused_parameters=True)


class _Total(torch.autograd.Function):
    """This function returns the sum of a value over processes.

    Its gradient is the sum of all processes' gradients, because each process's loss depends on every summand.
    """

    @staticmethod
    def forward(_ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total


class _Synchronised:
    """Mixin for a batch norm: in training mode, mean and variance are taken over the rows of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        norm: Any = self
        if not norm.training:
            return super().forward(x)  # type: ignore[misc,no-any-return]
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        count = torch.tensor([x.numel() / x.shape[1]], device=x.device, dtype=torch.float32)
        values = x.float()
        sums: Tensor = _Total.apply(torch.cat([values.sum(dims), count]))  # type: ignore[no-untyped-call]
        n = sums[-1].detach()
        mean = sums[:-1] / n
        centred = values - mean.view(shape)
        var: Tensor = _Total.apply(centred.square().sum(dims)) / n  # type: ignore[no-untyped-call]
        if norm.track_running_stats:
            self._follow(mean.detach(), var.detach() * n / (n - 1).clamp_min(1))
        out = centred * torch.rsqrt(var + norm.eps).view(shape)
        if norm.affine:
            out = out * norm.weight.view(shape) + norm.bias.view(shape)
        return out.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        """Update the running statistics as torch's batch norm does, with the unbiased variance `var`."""
        norm: Any = self
        norm.num_batches_tracked.add_(1)
        share = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
        norm.running_var.lerp_(var.to(norm.running_var.dtype), share)


@contextmanager
def synchronised_batch_norm(network: nn.Module, group: ProcessGroup) -> Iterator[None]:
    """Have every batch norm of `network` use the rows of all processes while the body runs."""
    found = [(m, type(m)) for m in network.modules() if isinstance(m, _BatchNorm)] if group.world_size > 1 else []
    try:
        for module, kind in found:
            module.__class__ = type(f"{kind.__name__}Synchronised", (_Synchronised, kind), {})
        yield
    finally:
        for module, kind in found:
            module.__class__ = kind
