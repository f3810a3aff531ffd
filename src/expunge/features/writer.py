"""The writer writes shards with their Moments and class sums, and publishes all shards as a store."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.core import Moments
from expunge.data.dataset import Dataset
from expunge.features.plan import PLAN, ExtractionPlan, FeatureShard
from expunge.features.store import CLASS_SUMS, MOMENTS, STORAGE_TYPES, Shards, groups, narrow, widen, write_shard
from expunge.system.errors import DataError
from expunge.system.files import MANIFEST, read_json, removed_on_error, sha256, staged_dir, write_json, write_manifest
from expunge.system.progress import log_message
from expunge.system.storage import writing

PRODUCER = "expunge.features.extract"
CHOICE = "choice.json"  # in the work directory: the result of `choose_compiled`
# The largest effect that rounding z to a smaller type may have in one shard; a type with a larger one is refused.
MAX_LOGIT_DIFFERENCE = 0.1
MAX_CHANGED = 0.001  # share of rows whose prediction changes; one row is always accepted
ROWS_AT_ONCE = 16_384


class ShardWriter:
    """Writes the shards of one plan into its work directory; not thread-safe.

    The effect of rounding is measured on the logits of `head`.
    """

    def __init__(self, plan: ExtractionPlan, work: Path, dataset: Dataset, head: nn.Linear) -> None:
        self.plan, self.work, self.dataset = plan, work, dataset
        self._weight, self._bias = head.weight.detach().cpu(), head.bias.detach().cpu()
        self._device = plan.settings.device

    def write(self, shard: FeatureShard, z: np.ndarray, seconds: Mapping[str, float]) -> None:
        """Write a shard, its Moments and its class sums. The record that marks them as complete is written last.

        `z` is float32 `(rows, d)`. Raises DataError if features are not finite (the message names the first row), and
        if rounding to the dtype on disk has too large an effect.
        """
        tick = time.perf_counter()
        finite = np.isfinite(z).all(axis=1)
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            first = self._rows(shard)["sample_id"][row].as_py()
            raise DataError(
                f"{self.dataset.directory}: the features of {int((~finite).sum())} rows are not finite, first "
                f"sample_id {first!r}; check that row and the model's weights"
            )
        dtype = self.plan.settings.dtype
        stored = narrow(z, dtype)
        loss = {} if dtype == "fp32" else self._loss(z, stored, shard)
        files = _shard_files(self.work, shard)
        tmp = files[0].with_suffix(f".{uuid.uuid4().hex}.tmp")  # another process may write the same shard
        rows = self._rows(shard)
        with writing(files[0]), removed_on_error(tmp):
            write_shard(tmp, rows, stored, dtype)
            os.replace(tmp, files[0])
            self._sums(rows, stored, files)
        spent = {**seconds, "write_s": time.perf_counter() - tick}
        write_json(
            _record(self.work, shard),
            {
                "rows": len(z),
                "files": {p.name: sha256(p) for p in files},
                "seconds": {name: round(value, 3) for name, value in spent.items()},
                **({"loss": loss} if loss else {}),
            },
        )

    def adopt(self, shard: FeatureShard, file: Path, loss: Mapping[str, Any]) -> None:
        """Reuse an intact shard of a published store: link the file and recompute its sums from the stored features."""
        files = _shard_files(self.work, shard)
        files[0].unlink(missing_ok=True)
        os.link(file, files[0])
        dtype = self.plan.settings.dtype
        z = Shards([files[0]], self._weight.shape[1], dtype).z()
        self._sums(self._rows(shard), narrow(z, dtype), files)
        record = {"rows": shard.stop - shard.start, "files": {p.name: sha256(p) for p in files}, "seconds": {}}
        write_json(_record(self.work, shard), record | ({"loss": dict(loss)} if loss else {}))

    def _rows(self, shard: FeatureShard) -> pa.Table:
        columns = ["sample_id", "label", "split", *(["subject"] if "subject" in self.dataset.columns else [])]
        return self.dataset.table(columns, shard.start, shard.stop)

    def _sums(self, rows: pa.Table, stored: np.ndarray, files: tuple[Path, Path, Path]) -> None:
        """Write the Moments and class sums of the training rows, computed from z as readers get it, in row order."""
        dtype, dim = self.plan.settings.dtype, stored.shape[1]
        classes = len(self.dataset.class_names)
        train = np.flatnonzero(np.asarray(rows["split"]) == "train")
        labels = torch.from_numpy(np.asarray(rows["label"], np.int64)[train])
        z = torch.from_numpy(widen(stored[train], dtype))
        sums = torch.zeros(classes, dim, dtype=torch.float64)
        for at in range(0, len(train), ROWS_AT_ONCE):
            sums.index_add_(0, labels[at : at + ROWS_AT_ONCE], z[at : at + ROWS_AT_ONCE].double())
        Moments(dim, self._device).update(z).save(files[1])
        save_file({"sums": sums, "counts": torch.bincount(labels, minlength=classes)}, files[2])

    def _loss(self, z: np.ndarray, stored: np.ndarray, shard: FeatureShard) -> dict[str, Any]:
        """Return the largest logit difference and the number of changed predictions due to rounding.

        Raises DataError if they exceed MAX_LOGIT_DIFFERENCE or MAX_CHANGED.
        """
        dtype = self.plan.settings.dtype
        largest, changed = 0.0, 0
        for at in range(0, len(z), ROWS_AT_ONCE):
            whole = self._logits(z[at : at + ROWS_AT_ONCE])
            rounded = self._logits(widen(stored[at : at + ROWS_AT_ONCE], dtype))
            # Infinite values after rounding give NaN, which max() could ignore; count it as an infinite difference.
            largest = max(largest, float((whole - rounded).abs().nan_to_num(nan=torch.inf).max()))
            changed += int((whole.argmax(1) != rounded.argmax(1)).sum())
        if largest > MAX_LOGIT_DIFFERENCE or changed > max(1, MAX_CHANGED * len(z)):
            raise DataError(
                f"features.dtype: {dtype} changes logits by up to {largest:.3g} and {changed} of {len(z)} "
                f"predictions in {shard.name}, but at most {MAX_LOGIT_DIFFERENCE} and {MAX_CHANGED:.1%} are allowed; "
                "use " + ("fp16 or fp32" if dtype == "bf16" else "fp32")
            )
        return {"changed_predictions": changed, "max_logit_difference": largest}

    def _logits(self, z: np.ndarray) -> Tensor:
        return F.linear(torch.from_numpy(z), self._weight, self._bias)


def _shard_files(work: Path, shard: FeatureShard) -> tuple[Path, Path, Path]:
    stem = work / shard.name
    return stem.with_suffix(".parquet"), stem.with_suffix(".moments"), stem.with_suffix(".classes")


def _record(work: Path, shard: FeatureShard) -> Path:
    return work / f"{shard.name}.json"


def shard_path(work: Path, shard: FeatureShard) -> Path:
    """Return the path of the shard's Parquet file in the work directory."""
    return _shard_files(work, shard)[0]


def is_whole(work: Path, shard: FeatureShard) -> bool:
    """Whether the shard was completed and its files still have the recorded digests."""
    record = _record(work, shard)
    if not record.is_file():
        return False
    files: dict[str, str] = read_json(record)["files"]
    damaged = [name for name, digest in files.items() if not (work / name).is_file() or sha256(work / name) != digest]
    for name in damaged:
        log_message(f"extract: {work / name} is damaged; its shard is computed again")
    return not damaged


def adopt_store(writer: ShardWriter, store: Path) -> None:
    """Reuse the intact shards of a published store of the same plan, to repair that store."""
    manifest = read_json(store / MANIFEST)
    if manifest.get("plan_digest") != writer.plan.digest:
        log_message(f"extract: {store} was computed with other settings or inputs, so none of its shards is reused")
        return
    for shard in writer.plan.shards:
        name = shard_path(writer.work, shard).name
        file, entry = store / name, manifest["files"][name]
        if is_whole(writer.work, shard):
            continue
        if file.is_file() and sha256(file) == entry["sha256"]:
            writer.adopt(shard, file, manifest.get("loss", {}).get(name, {}))
        else:
            log_message(f"extract: {file} is damaged; it is computed again")


def publish(plan: ExtractionPlan, work: Path, out: Path) -> dict[str, Any]:
    """Merge the sums of the shards in order, write the store `out`, manifest last, and remove the work directory.

    Return the manifest with the extra keys `seconds` (per shard) and `choice`. These differ from run to run and are
    therefore not in the manifest on disk.
    """
    records = {shard_path(work, shard).name: read_json(_record(work, shard)) for shard in plan.shards}
    moments: Moments | None = None
    classes: dict[str, Tensor] = {}
    for shard in plan.shards:
        _, moments_file, classes_file = _shard_files(work, shard)
        more, sums = Moments.load(moments_file), load_file(classes_file)
        moments = more if moments is None else moments + more
        classes = {key: classes[key] + sums[key] for key in sums} if classes else sums
    assert moments is not None
    losses = {name: record["loss"] for name, record in records.items() if "loss" in record}
    choice = read_json(work / CHOICE) if (work / CHOICE).is_file() else {}
    settings = {key: plan.description[key] for key in ("batch_size", "shard_rows", "precision", "device")}
    with staged_dir(out) as staging:
        for name in records:
            os.link(work / name, staging / name)
        moments.save(staging / MOMENTS)
        save_file(classes, staging / CLASS_SUMS)
        manifest = write_manifest(
            staging,
            PRODUCER,
            rows={name: record["rows"] for name, record in records.items()},
            digests={name: record["files"][name] for name, record in records.items()},
            groups={name: groups(work / name, moments.dim, plan.settings.dtype) for name in records},
            dim=moments.dim,
            dtype=STORAGE_TYPES[plan.settings.dtype].name,
            layout="plain pages, one per row group",
            model_digest=plan.description["backbone"],
            dataset_digest=plan.description["dataset"],
            plan_digest=plan.digest,
            settings={**settings, "compiled": bool(choice.get("compiled", False))},
            **({"loss": losses} if losses else {}),
        )
    _drop(work)
    if losses:
        largest = max(loss["max_logit_difference"] for loss in losses.values())
        changed = sum(loss["changed_predictions"] for loss in losses.values())
        log_message(
            f"extract: storing z as {manifest['dtype']} changes logits by up to {largest:.2g} and {changed} of "
            f"{plan.rows:,} predictions"
        )
    return {**manifest, "seconds": {name: record["seconds"] for name, record in records.items()}, "choice": choice}


def _drop(work: Path) -> None:
    """Remove a work directory and those whose plans differ from it only in the head, which it supersedes."""
    mine = read_json(work / PLAN)
    for other in work.parent.iterdir():
        if (other / PLAN).is_file():
            theirs = read_json(other / PLAN)
            if all(mine.get(key) == theirs.get(key) for key in mine if key != "head"):
                shutil.rmtree(other)
