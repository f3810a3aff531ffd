"""The reader reads and decodes batches in order, ahead of the model."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from expunge.data.dataset import Dataset
from expunge.data.schema import ENCODED
from expunge.features.plan import FeatureShard

READ_AHEAD = 4  # batches that are decoded while the model computes; bounds memory
SLICE = 32  # images that one thread decodes at a time


def one_torch_thread() -> None:
    """Restrict torch to one thread in the calling helper thread, so that it does not compete with the model's threads.

    The setting is local to the thread; the number of threads of the main thread does not change.
    """
    torch.set_num_threads(1)


@dataclass(frozen=True)
class FeatureBatch:
    """Rows of a shard from dataset row `first` on.

    `images` is the input of the model: uint8 `(n, h, w, c)`, preprocessed float `(n, channels, height, width)` if
    images differ in size, or token ids `(n, t)` of texts.
    """

    shard: FeatureShard
    first: int
    images: Any
    read_s: float
    decode_s: float


class Reader:
    """Reads the rows of shards in order: one thread reads Parquet, `threads` threads decode.

    Decoding in threads is parallel because Pillow's decoders release the GIL. `pin` allocates page-locked memory, from
    which copies to a GPU run in the background. The DataError of an unreadable row, which names it, is raised when its
    batch is taken.
    """

    def __init__(
        self, dataset: Dataset, preprocess: Callable[[Any], Any], batch_size: int, threads: int, pin: bool = False
    ) -> None:
        self.dataset, self.preprocess, self.batch_size = dataset, preprocess, batch_size
        self.threads, self.pin = threads, pin

    def batches(self, shards: list[FeatureShard]) -> Iterator[FeatureBatch]:
        """Yield the batches of the shards, in order. At most READ_AHEAD batches are decoded ahead of the caller."""
        tables = self._tables(shards)
        with (
            ThreadPoolExecutor(1, initializer=one_torch_thread) as reader,
            ThreadPoolExecutor(self.threads, initializer=one_torch_thread) as pool,
        ):
            queue: deque[Future[Callable[[], FeatureBatch] | None]] = deque()
            try:
                queue.extend(reader.submit(self._next, tables, pool) for _ in range(READ_AHEAD))
                while (finish := queue.popleft().result()) is not None:
                    queue.append(reader.submit(self._next, tables, pool))
                    yield finish()
            finally:  # if the caller stops early, queued batches are not decoded
                reader.shutdown(wait=True, cancel_futures=True)
                pool.shutdown(wait=True, cancel_futures=True)

    def _tables(self, shards: list[FeatureShard]) -> Iterator[tuple[FeatureShard, int, pa.Table]]:
        for shard in shards:
            for first, table in self.dataset.iter_tables(self.batch_size, shard.start, shard.stop):
                yield shard, first, table

    def _next(
        self, tables: Iterator[tuple[FeatureShard, int, pa.Table]], pool: ThreadPoolExecutor
    ) -> Callable[[], FeatureBatch] | None:
        """Read one batch and start decoding it; the returned function waits for the result. None after the last one."""
        tick = time.perf_counter()
        item = next(tables, None)
        if item is None:
            return None
        shard, first, table = item
        read_s = time.perf_counter() - tick
        if self.dataset.encoding != ENCODED:
            tick = time.perf_counter()
            images = self._prepared(self.dataset.decode(table))
            decode_s = time.perf_counter() - tick
            return lambda: FeatureBatch(shard, first, images, read_s, decode_s)
        shape = self.dataset.image_shape
        out = self._empty((len(table), *shape)) if shape else None
        parts = [
            pool.submit(self._decode, table.slice(i, SLICE), None if out is None else out[i : i + SLICE])
            for i in range(0, len(table), SLICE)
        ]

        def finish() -> FeatureBatch:
            found = [part.result() for part in parts]
            images = self._together([x for x, _ in found]) if out is None else out
            return FeatureBatch(shard, first, images, read_s, sum(seconds for _, seconds in found))

        return finish

    def _decode(self, table: pa.Table, out: Tensor | None) -> tuple[Any, float]:
        tick = time.perf_counter()
        images = self.dataset.decode(table)
        if out is not None:
            out.numpy()[:] = images
            return None, time.perf_counter() - tick
        # Images of different sizes are preprocessed here, in parallel, and not one by one in the model's thread.
        return self.preprocess(images), time.perf_counter() - tick

    def _together(self, parts: list[Tensor]) -> Tensor:
        images = torch.cat(parts) if len(parts) > 1 else parts[0]
        return images.pin_memory() if self.pin else images

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.pin)

    def _prepared(self, images: Any) -> Any:
        """Preprocess lists. Return images of one size as they are, since the model preprocesses them on its device."""
        if not isinstance(images, np.ndarray):
            return self._together([self.preprocess(images)])
        if not self.pin:
            return images
        out = self._empty(images.shape)
        out.numpy()[:] = images
        return out
