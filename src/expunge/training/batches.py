"""The inputs of every batch of a training: rows as they are, or images augmented in this or in worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from expunge.system.errors import ExpungeError
from expunge.training.augment import Augment, make_augment

Request = tuple[int, Tensor]  # the seed of a batch's draws, and its rows


class AugmentedImages(Dataset[Tensor]):
    """Augmented batches of `images`, uint8 `(n, h, w)` or `(n, h, w, c)`. A batch depends only on its seed and rows.

    `images` is a tensor, so that worker processes share its memory, whether they are forked or spawned.
    """

    def __init__(self, images: Tensor, augment: str) -> None:
        self.images = images
        self.name = augment

    @cached_property
    def augment(self) -> Augment | None:
        """The transforms. They are made on first use, because a spawned worker cannot receive them."""
        return make_augment(self.name, *self.images.shape[1:3])

    def __getitem__(self, request: Request) -> Tensor:
        seed, rows = request
        images = self.images[rows]
        if self.augment is None or not len(rows):  # a process may have no row of a short batch
            return images
        # torchvision draws from torch's global generator, which dropout uses too: seed it, and restore it afterwards.
        with torch.random.fork_rng(devices=[]), one_thread():
            torch.default_generator.manual_seed(seed)
            return self.augment(images)


class Batches:
    """Yields the inputs of the batches of each epoch. Use it as a context manager, which ends its worker processes.

    `inputs`: images as in `AugmentedImages`, or token ids `(n, t)` if `augment` is "none". `workers`: number of
    processes that augment ahead of the training; 0 augments in this process. The result does not depend on it.
    `rank`: this process's place among `world_size` processes that train together.
    """

    def __init__(self, inputs: Tensor, augment: str, workers: int, seed: int, rank: int, world_size: int) -> None:
        self.inputs = inputs
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.requests: list[Request] = []  # of the current epoch
        self.loader: DataLoader[Tensor] | None = None
        if augment != "none":
            make_augment(augment, *inputs.shape[1:3])  # fails here if it fails; forked workers inherit torchvision
            # An own generator: the loader draws a seed for its workers, which must not disturb dropout.
            self.loader = DataLoader(
                AugmentedImages(inputs, augment), batch_size=None, sampler=self.requests,
                num_workers=workers, persistent_workers=workers > 0, generator=torch.Generator(),
            )  # fmt: skip

    def epoch(self, epoch: int, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the inputs at the rows of each of `parts`, the batches of the epoch or their parts, in order."""
        if self.loader is None:
            return (self.inputs[rows] for rows in parts)
        self.requests[:] = [(self._seed(epoch, i), rows) for i, rows in enumerate(parts)]
        return iter(self.loader)

    def _seed(self, epoch: int, index: int) -> int:
        sequence = np.random.SeedSequence([self.seed, epoch, index, self.rank])
        return int(sequence.generate_state(1, np.uint64)[0])

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: TracebackType | None) -> None:
        self.loader = None  # its workers end with it
        # torch reports a dead worker by a signal handler, so the error may come from any line of the training. Among
        # several processes it is left as it is: the process ends, and all of them start again.
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker") and self.world_size == 1:
            raise ExpungeError(
                f"train: a process that augments images died ({str(error).splitlines()[0]}); it may have run out of "
                "memory or shared memory. Training resumes from the last epoch if it is started again; set "
                "train.augment_workers: 0 to augment in the training process"
            ) from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, as torch's workers do: the rounding of a large image's mean depends on the threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
