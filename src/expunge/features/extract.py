"""Extract features in one forward pass over every row: reader -> mapper -> writer, resumable shard by shard.

The Moments of the features are computed in the same pass.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.data.dataset import Dataset
from expunge.data.schema import ENCODED, RAW
from expunge.features.mapper import Mapper, choose_compiled
from expunge.features.plan import ExtractionPlan, ExtractionSettings, FeatureShard
from expunge.features.reader import FeatureBatch, Reader, one_torch_thread
from expunge.features.store import Shards
from expunge.features.writer import CHOICE, ShardWriter, adopt_store, is_whole, publish, shard_path
from expunge.models.classifier import Classifier
from expunge.system.files import read_json, write_json
from expunge.system.processors import cores
from expunge.system.progress import log_message, progress

__all__ = ["Extraction", "ExtractionSettings", "extract", "extract_shards"]

Advance = Callable[[int], None]


def extract(
    classifier: Classifier,
    dataset: Dataset,
    out: Path,
    work_root: Path,
    settings: ExtractionSettings,
    engine: Engine | None = None,
    repair: bool = False,
) -> dict[str, Any]:
    """Write the feature store `out`; return the result of `publish` with `rows_made`, the rows computed in this run.

    Shards are made in a work directory that is named after what determines their bytes (backbone, dataset, settings).
    An interrupted run therefore resumes with its complete shards, and shards that an earlier stage made with the same
    plan are reused. `engine` makes the missing shards; by default this process does. `repair` keeps the intact shards
    of an existing store `out`. Raises DataError, which names the first row, if features are not finite.
    """
    extraction = Extraction(classifier, dataset, work_root, settings)
    if repair:
        adopt_store(extraction.writer, out)
    (engine or Extraction.make)(extraction)
    return publish(extraction.plan, extraction.work, out) | {"rows_made": extraction.rows_made}


def extract_shards(
    classifier: Classifier, dataset: Dataset, work_root: Path, settings: ExtractionSettings
) -> tuple[Path, Shards]:
    """Make the missing shards in the work directory; return the directory and its shards."""
    extraction = Extraction(classifier, dataset, work_root, settings)
    extraction.make()
    files = [shard_path(extraction.work, shard) for shard in extraction.plan.shards]
    return extraction.work, Shards(files, classifier.card.feature_dim, settings.dtype)


class Extraction:
    """The extraction of one model on one dataset: its plan and work directory, and a reader, a mapper and a writer.

    `threads` is the number of threads that decode; None means one per core.
    """

    def __init__(
        self,
        classifier: Classifier,
        dataset: Dataset,
        work_root: Path,
        settings: ExtractionSettings,
        threads: int | None = None,
    ) -> None:
        self.classifier, self.dataset, self.settings = classifier, dataset, settings
        self.plan = ExtractionPlan.of(classifier, dataset, settings)
        self.work = self.plan.open(work_root)
        self.writer = ShardWriter(self.plan, self.work, dataset, classifier.head)
        self.reader = Reader(
            dataset, classifier.preprocess, settings.batch_size, threads or cores(), pin=settings.device == "cuda"
        )
        self.rows_made = 0
        self._mapper: Mapper | None = None

    def missing(self) -> list[FeatureShard]:
        """Return the shards that are missing or damaged. Temporary files of interrupted runs are deleted."""
        for leftover in self.work.glob("*.tmp"):
            leftover.unlink()
        todo = [shard for shard in self.plan.shards if not is_whole(self.work, shard)]
        if len(todo) < len(self.plan.shards):
            log_message(
                f"extract: {len(self.plan.shards) - len(todo)} of {len(self.plan.shards)} shards are already complete"
            )
        self.rows_made = sum(shard.stop - shard.start for shard in todo)
        return todo

    def make(self) -> None:
        """The default engine: make the missing shards in this process."""
        todo = self.missing()
        self.choose()
        with self.progress(todo) as advance:
            self.run(todo, advance)

    def progress(self, shards: Iterable[FeatureShard], what: str = "extract") -> AbstractContextManager[Advance]:
        """Return a progress display over the rows of `shards`, with rows per second and the remaining time."""
        unit = "images" if self.dataset.encoding in (RAW, ENCODED) else "rows"
        return progress(what, sum(s.stop - s.start for s in shards), unit)

    def choose(self) -> None:
        """With compile "auto", measure once whether the compiled model is faster; store the choice with the shards."""
        if self.settings.compile != "auto" or (self.work / CHOICE).is_file():
            return
        first = FeatureShard(0, 0, min(self.settings.batch_size, self.plan.rows))
        images = next(iter(self.reader.batches([first]))).images
        if images.dtype != torch.int64:  # texts differ in length, and a compiled model has one input shape
            choice = choose_compiled(self.classifier, self.settings, images)
            write_json(self.work / CHOICE, choice)
            log_message(f"extract: the {'compiled' if choice['compiled'] else 'plain'} model was faster and is used")

    @property
    def mapper(self) -> Mapper:
        """The mapper, created on first use, because a process that only coordinates workers needs none."""
        if self._mapper is None:
            choice = read_json(self.work / CHOICE) if (self.work / CHOICE).is_file() else {}
            self._mapper = Mapper(self.classifier, self.settings, bool(choice.get("compiled")))
        return self._mapper

    def run(self, shards: Sequence[FeatureShard], advance: Advance) -> None:
        """Make `shards` in this process. Reading, decoding, computing and writing run concurrently."""
        threads = torch.get_num_threads()
        writing: Future[None] | None = None  # at most one shard waits for the disk, which bounds memory
        try:
            with ThreadPoolExecutor(1, initializer=one_torch_thread) as writer:
                for shard, z, seconds in self.map(shards, advance):
                    if writing is not None:
                        writing.result()
                    writing = writer.submit(self.writer.write, shard, z, seconds)
                if writing is not None:
                    writing.result()
        finally:
            torch.set_num_threads(threads)

    def map(
        self, shards: Sequence[FeatureShard], advance: Advance
    ) -> Iterator[tuple[FeatureShard, np.ndarray, dict[str, float]]]:
        """Yield `shard, z (rows, d) float32, seconds per step` in order, without a pause between shards."""
        waited: dict[int, float] = defaultdict(float)
        seconds: dict[str, float] = defaultdict(float)
        z = np.empty(0, np.float32)
        for mapped in self.mapper.run(_timed(self.reader.batches(list(shards)), waited)):
            batch, shard = mapped.batch, mapped.batch.shard
            if batch.first == shard.start:
                z = np.empty((shard.stop - shard.start, mapped.z.shape[1]), np.float32)
                seconds = defaultdict(float)
            at = batch.first - shard.start
            z[at : at + len(mapped.z)] = mapped.z
            seconds["read_s"] += batch.read_s
            seconds["decode_s"] += batch.decode_s
            seconds["forward_s"] += mapped.forward_s
            advance(len(mapped.z))
            if at + len(mapped.z) == len(z):
                yield shard, z, {**seconds, "waited_for_data_s": waited.pop(shard.index)}


def _timed(batches: Iterator[FeatureBatch], waited: dict[int, float]) -> Iterator[FeatureBatch]:
    """Yield `batches`; add the seconds for which the caller waits for each to `waited`, by shard index."""
    while True:
        tick = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        waited[batch.shard.index] += time.perf_counter() - tick
        yield batch


Engine = Callable[[Extraction], None]
