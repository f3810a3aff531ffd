"""One forward pass over every row: reader -> mapper -> writer, shard by shard, resumable, Moments on the way."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file

from expunge.config import Features
from expunge.core import Moments
from expunge.data.dataset import Dataset
from expunge.errors import DataError
from expunge.features.store import CLASS_SUMS, MOMENTS, Shards, write_shard
from expunge.files import digest_of, read_json, sha256, staged_dir, write_json, write_manifest
from expunge.models.checkpoint import backbone_digest
from expunge.models.classifier import Classifier
from expunge.progress import progress, say

READ_AHEAD = 4  # batches decoded while the model computes; bounds memory
PRODUCER = "expunge.features.extract"


@dataclass(frozen=True)
class Settings:
    """What of params determines the bytes of a store."""

    batch_size: int
    shard_rows: int
    bf16: bool

    @classmethod
    def of(cls, features: Features) -> Settings:
        return cls(features.batch_size, features.shard_rows, features.precision == "bf16")


def extract(classifier: Classifier, dataset: Dataset, out: Path, work_root: Path, settings: Settings) -> dict[str, Any]:
    """Write the feature store `out`; return its manifest with the seconds spent per shard beside it.

    Shards are made in a work directory named by what determines their bytes (backbone, dataset, settings). A killed run
    finds its whole shards there, and so does a stage that needed the same features earlier. Raises DataError naming
    the first row whose features are not finite.
    """
    work, _ = extract_shards(classifier, dataset, work_root, settings)
    return publish(work, out)


def extract_shards(
    classifier: Classifier, dataset: Dataset, work_root: Path, settings: Settings
) -> tuple[Path, Shards]:
    """Fill the work directory; return it and its shards. Whole shards found there are kept."""
    plan = {
        "backbone": backbone_digest(classifier),
        "dataset": dataset.digest,
        "preprocess": classifier.preprocess.to_json(),
        **asdict(settings),
    }
    work = work_root / digest_of(plan).removeprefix("sha256:")[:16]
    write_json(work / "plan.json", plan)
    bounds = [*range(0, dataset.rows, settings.shard_rows), dataset.rows]
    todo = [(i, *edge) for i, edge in enumerate(pairwise(bounds)) if not _is_whole(work, i)]
    if len(todo) < len(bounds) - 1:
        say(f"extract: {len(bounds) - 1 - len(todo)} of {len(bounds) - 1} shards are already whole")
    total = sum(stop - start for _, start, stop in todo)
    with progress("extract", total, "images") as advance, ThreadPoolExecutor(1) as writer:
        pending: Future[None] | None = None
        for index, start, stop in todo:
            z, seconds = _forward(classifier, dataset, start, stop, settings, advance)
            if pending is not None:
                pending.result()
            pending = writer.submit(_finish_shard, work, index, dataset, start, z, seconds)
        if pending is not None:
            pending.result()
    shards = Shards([_names(work, i)[0] for i in range(len(bounds) - 1)], classifier.card.feature_dim)
    return work, shards


def _forward(
    classifier: Classifier, dataset: Dataset, start: int, stop: int, settings: Settings, advance: Callable[[int], None]
) -> tuple[np.ndarray, dict[str, float]]:
    """Features `(stop - start, d)` float32 of the rows of one shard, and where the time went."""
    z = np.empty((stop - start, classifier.card.feature_dim), np.float32)
    waited = computed = 0.0
    batches = _read_ahead(dataset.iter_batches(settings.batch_size, start, stop))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
        while True:
            tick = time.perf_counter()
            batch = next(batches, None)
            tock = time.perf_counter()
            waited += tock - tick
            if batch is None:
                break
            first, images = batch
            features = classifier.features(images).float().numpy()
            z[first - start : first - start + len(features)] = features
            computed += time.perf_counter() - tock
            advance(len(features))
    bad = np.flatnonzero(~np.isfinite(z).all(axis=1))
    if len(bad):
        row = start + int(bad[0])
        raise DataError(
            f"{dataset.directory}: the features of {len(bad)} rows are not finite, first sample_id "
            f"{dataset.sample_ids()[row]!r}; check that image and the model's weights"
        )
    return z, {"waited_for_decode_s": round(waited, 3), "forward_s": round(computed, 3)}


def _read_ahead(batches: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Decode the next batches in a thread while the caller computes."""
    with ThreadPoolExecutor(1) as reader:
        queue = [reader.submit(next, batches, None) for _ in range(READ_AHEAD)]
        while (item := queue.pop(0).result()) is not None:
            queue.append(reader.submit(next, batches, None))
            yield item


def _finish_shard(
    work: Path, index: int, dataset: Dataset, start: int, z: np.ndarray, seconds: dict[str, float]
) -> None:
    """Write shard, moments and class sums under temporary names; the record that makes them count comes last."""
    tick = time.perf_counter()
    columns = ["sample_id", "label", "split", *(["subject"] if "subject" in dataset.columns else [])]
    rows: pa.Table = dataset.table(columns).slice(start, len(z))
    train = np.flatnonzero(np.asarray(rows["split"]) == "train")
    labels = torch.from_numpy(np.asarray(rows["label"], np.int64)[train])
    z_train = torch.from_numpy(z[train])
    sums = torch.zeros(len(dataset.class_names), z.shape[1], dtype=torch.float64).index_add_(
        0, labels, z_train.double()
    )
    shard, moments, classes, record = _names(work, index)
    tmp = shard.with_suffix(".tmp")
    write_shard(tmp, rows, z)
    os.replace(tmp, shard)
    Moments(z.shape[1]).update(z_train).save(moments)
    save_file({"sums": sums, "counts": torch.bincount(labels, minlength=len(dataset.class_names))}, classes)
    seconds = {**seconds, "write_s": round(time.perf_counter() - tick, 3)}
    write_json(
        record, {"rows": len(z), "files": {p.name: sha256(p) for p in (shard, moments, classes)}, "seconds": seconds}
    )


def _names(work: Path, index: int) -> tuple[Path, Path, Path, Path]:
    stem = work / f"part-{index:05d}"
    return (
        stem.with_suffix(".parquet"),
        stem.with_suffix(".moments"),
        stem.with_suffix(".classes"),
        stem.with_suffix(".json"),
    )


def _is_whole(work: Path, index: int) -> bool:
    record = _names(work, index)[3]
    if not record.is_file():
        return False
    files: dict[str, str] = read_json(record)["files"]
    damaged = [name for name, digest in files.items() if not (work / name).is_file() or sha256(work / name) != digest]
    for name in damaged:
        say(f"extract: {work / name} is damaged; its shard is made again")
    return not damaged


def publish(work: Path, out: Path) -> dict[str, Any]:
    """Merge the Moments of the shards, move everything to `out`, manifest last, and drop the work directory."""
    plan = read_json(work / "plan.json")
    stems = [shard.with_suffix("") for shard in sorted(work.glob("part-*.parquet"))]
    records = {f"{stem.name}.parquet": read_json(stem.with_suffix(".json")) for stem in stems}
    moments = Moments.load(stems[0].with_suffix(".moments"))
    classes = load_file(stems[0].with_suffix(".classes"))
    for stem in stems[1:]:
        moments = moments + Moments.load(stem.with_suffix(".moments"))
        more = load_file(stem.with_suffix(".classes"))
        classes = {key: classes[key] + more[key] for key in classes}
    with staged_dir(out) as staging:
        for stem in stems:
            os.link(stem.with_suffix(".parquet"), staging / f"{stem.name}.parquet")
        moments.save(staging / MOMENTS)
        save_file(classes, staging / CLASS_SUMS)
        manifest = write_manifest(
            staging,
            PRODUCER,
            rows={name: record["rows"] for name, record in records.items()},
            dim=moments.dim,
            dtype="float32",
            layout="plain pages, one per row group",
            model_digest=plan["backbone"],
            dataset_digest=plan["dataset"],
            settings={key: plan[key] for key in ("batch_size", "shard_rows", "bf16")},
        )
    shutil.rmtree(work)
    return {**manifest, "seconds": {name: record["seconds"] for name, record in records.items()}}
