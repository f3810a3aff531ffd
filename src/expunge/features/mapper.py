"""The mapper computes the features of batches; on CUDA, copies overlap with computation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.features.plan import ExtractionSettings
from expunge.features.reader import FeatureBatch
from expunge.models.classifier import Classifier
from expunge.system.errors import DataError
from expunge.system.progress import log_message

AUTOCAST = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
RESULTS = 2  # buffers for batches that are copied back from the device
TRIAL_BATCHES = 20  # timed batches per variant (plain, compiled), after compilation


@dataclass(frozen=True)
class Mapped:
    """The features `z (n, d)` of a batch, float32 on the CPU; `forward_s` is the time of the forward pass."""

    batch: FeatureBatch
    z: np.ndarray
    forward_s: float


class Mapper:
    """Runs the backbone on its device.

    When the device runs out of memory, the number of rows per forward pass is halved for the rest of the run, with a
    warning. This can change the last bits of features, because libraries may choose kernels by batch size.
    """

    def __init__(self, classifier: Classifier, settings: ExtractionSettings, compiled: bool = False) -> None:
        self.device = torch.device(settings.device)
        self.cuda = self.device.type == "cuda"
        self.rows_at_once = settings.batch_size
        self._batch_size = settings.batch_size
        self._autocast = AUTOCAST[settings.precision]
        self.classifier = classifier.eval()
        if self.cuda:  # a copy, so that the caller's model stays on its device
            self.classifier = deepcopy(classifier).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._copies = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._compiled: Callable[[Tensor], Tensor] | None = None
        if compiled:
            # Preprocessing is not compiled: it creates its constants on the CPU, which CUDA graphs do not support.
            self._compiled = torch.compile(self.classifier.backbone, mode="reduce-overhead", dynamic=False)

    def run(self, batches: Iterator[FeatureBatch]) -> Iterator[Mapped]:
        """Yield the features of the batches in order. On CUDA, a batch is copied while the previous one is computed."""
        return self._run_cuda(batches) if self.cuda else self._run_cpu(batches)

    def _run_cpu(self, batches: Iterator[FeatureBatch]) -> Iterator[Mapped]:
        for batch in batches:
            tick = time.perf_counter()
            z = self.features(batch.images).numpy()
            yield Mapped(batch, z, time.perf_counter() - tick)

    def _run_cuda(self, batches: Iterator[FeatureBatch]) -> Iterator[Mapped]:
        dim = self.classifier.card.feature_dim
        ring = [torch.empty(self._batch_size, dim, pin_memory=True) for _ in range(RESULTS)]
        waiting: list[tuple[FeatureBatch, Tensor, torch.cuda.Event, torch.cuda.Event]] = []
        for turn, batch in enumerate(batches):
            started, ended = _event(), _event()
            images = self._to_device(batch.images)
            started.record()
            z = self.features(images)
            back = ring[turn % RESULTS][: len(z)]
            back.copy_(z, non_blocking=True)
            ended.record()
            waiting.append((batch, back, started, ended))
            if len(waiting) == RESULTS:
                yield self._arrived(*waiting.pop(0))
        for last in waiting:
            yield self._arrived(*last)

    def _arrived(self, batch: FeatureBatch, z: Tensor, started: torch.cuda.Event, ended: torch.cuda.Event) -> Mapped:
        ended.synchronize()
        return Mapped(batch, z.numpy(), started.elapsed_time(ended) / 1000)

    def _to_device(self, images: Any) -> Any:
        """Copy page-locked tensors to the device on a separate stream, concurrently with the computation."""
        if not isinstance(images, Tensor):
            return images
        with torch.cuda.stream(self._copies):
            there = images.to(self.device, non_blocking=True)
        torch.cuda.current_stream().wait_stream(self._copies)
        there.record_stream(torch.cuda.current_stream())
        return there

    def features(self, images: Any) -> Tensor:
        """Return z `(n, d)`, float32 on the device; computed in pieces if the batch does not fit into its memory.

        Raises DataError if a single row does not fit.
        """
        while True:
            try:
                with torch.inference_mode(), self._casting():
                    if len(images) <= self.rows_at_once:
                        return self._forward(images)
                    pieces = range(0, len(images), self.rows_at_once)
                    return torch.cat([self._forward(images[i : i + self.rows_at_once]) for i in pieces])
            except torch.OutOfMemoryError as e:
                self._halve(len(images), e)

    def _forward(self, images: Any) -> Tensor:
        if self._compiled is None or not isinstance(images, Tensor) or len(images) > self._batch_size:
            return self.classifier.features(images).float()
        missing = self._batch_size - len(images)
        if missing:  # pad the batch: another shape would be compiled again
            images = torch.cat([images, images[:1].expand(missing, *images.shape[1:])])
        z = self._compiled(images if images.is_floating_point() else self.classifier.preprocess(images))
        return z[: len(z) - missing].float()

    def _casting(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._autocast is None else torch.autocast(self.device.type, self._autocast)

    def _halve(self, rows: int, error: Exception) -> None:
        tried = min(rows, self.rows_at_once)
        if tried == 1:
            raise DataError(
                f"{self.device} has too little memory for a single image ({error}); lower model.image_size, or use a "
                "larger device"
            ) from None
        self.rows_at_once = tried // 2
        self._compiled = None  # its memory pool has the size of full batches
        if self.cuda:
            torch.cuda.empty_cache()
        log_message(
            f"extract: warning: {self.device} is out of memory at {tried} rows; continuing with {self.rows_at_once} "
            "rows"
        )


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def choose_compiled(classifier: Classifier, settings: ExtractionSettings, images: Tensor) -> dict[str, Any]:
    """Time the plain and the compiled model on one full batch; return `compiled` and both rates in images per second.

    The choice is made once per extraction and stored with the shards, because the two variants may differ in the last
    bits. If compilation fails, its rate is 0 and `why` has the reason.
    """
    rates: dict[str, Any] = {}
    for way in (False, True):
        name = "compiled_images_per_s" if way else "plain_images_per_s"
        try:
            mapper = Mapper(classifier, settings, compiled=way)
            there = images.to(mapper.device)
            for _ in range(3):
                mapper.features(there)
            torch.cuda.synchronize()
            tick = time.perf_counter()
            for _ in range(TRIAL_BATCHES):
                mapper.features(there)
            torch.cuda.synchronize()
            rates[name] = round(TRIAL_BATCHES * len(images) / (time.perf_counter() - tick), 1)
        except RuntimeError as e:  # torch.compile raises RuntimeErrors, also for a missing compiler
            if not way:
                raise
            rates |= {name: 0.0, "why": str(e).splitlines()[0]}
    return {"compiled": rates["compiled_images_per_s"] > rates["plain_images_per_s"], **rates}
