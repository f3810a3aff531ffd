"""Replace labels in the outputs of the pipeline, and remove what was made under the old labels.

Each function yields what it found and, with a journal, also stages the new state. Files without a label to replace are
hard-linked, not copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from expunge.data.corrected import with_label_column
from expunge.data.schema import DUPLICATES, TRAIN
from expunge.data.writer import find_duplicates
from expunge.features.store import CLASS_SUMS, STORAGE_TYPES, Shards, narrow, write_shard
from expunge.sweep.journal import Journal
from expunge.sweep.label_targets import LabelTargets
from expunge.sweep.outputs import new_dataset
from expunge.sweep.report import Residue
from expunge.sweep.shards import copy_labelled, link, renew_manifest
from expunge.system.files import MANIFEST, read_manifest
from expunge.system.paths import (
    ACTIVATIONS,
    DATASET,
    EVALUATION,
    FEATURES,
    MODELS,
    ORIGINAL,
    RETRAINED,
    SHADOW,
    SPLIT,
    UNLEARNED,
)


def dataset(targets: LabelTargets, journal: Journal | None) -> Iterator[Residue]:
    """Replace the labels in the dataset, and compare duplicates again, which count groups across labels."""
    if not targets.changed.any():
        return
    yield Residue(str(DATASET), "labels", int(targets.changed.sum()))
    if journal is None:
        return
    directory, old = targets.dataset.directory, targets.dataset.manifest
    place = journal.swap(directory)
    place.mkdir()
    start, rows = 0, {}
    for name, entry in sorted(old["files"].items()):
        if name == DUPLICATES:
            continue
        part = slice(start, start + entry["rows"]) if name.startswith("part-") else slice(0)
        if targets.changed[part].any():
            copy_labelled(directory / name, place / name, targets.new[part])
            rows[name] = entry["rows"]
        else:
            link(directory / name, place / name)
        start += part.stop - part.start if name.startswith("part-") else 0
    columns = targets.dataset.table(["sample_id", "label", "split", "digest"])
    duplicates, counts = find_duplicates(with_label_column(columns, targets.new).combine_chunks())
    pq.write_table(duplicates, place / DUPLICATES, compression="zstd")
    renew_manifest(place, directory, old, {**rows, DUPLICATES: duplicates.num_rows}, duplicates=counts)


def features(targets: LabelTargets, journal: Journal | None) -> Iterator[Residue]:
    """Replace the labels in the features of the original, and move the rows' features between the sums of classes."""
    directory = targets.root / FEATURES / ORIGINAL
    if not (directory / MANIFEST).is_file():
        return
    old = read_manifest(directory, verify=False)
    names = sorted(n for n in old["files"] if n.endswith(".parquet"))
    labels = {n: _labels(targets, directory / n) for n in names}
    count = sum(int((before != after).sum()) for before, after in labels.values())
    if not count:
        return
    yield Residue(str(FEATURES / ORIGINAL), "labels", count)
    if journal is None:
        return
    place = journal.swap(directory)
    place.mkdir()
    sums, rows = load_file(directory / CLASS_SUMS), {}
    dtype = next(n for n, numbers in STORAGE_TYPES.items() if numbers.name == old.get("dtype", "float32"))
    for name in old["files"]:
        if name == CLASS_SUMS:
            continue
        before, after = labels.get(name, (np.empty(0), np.empty(0)))
        if not (before != after).any():
            link(directory / name, place / name)
            continue
        shard = Shards([directory / name], old["dim"], dtype)
        table = pq.read_table(directory / name, columns=[c for c in pq.read_schema(directory / name).names if c != "z"])
        moved = np.flatnonzero((before != after) & (np.asarray(table["split"]) == TRAIN))
        _move(sums, torch.from_numpy(shard.z(moved)), before[moved], after[moved])
        z = narrow(shard.z(np.arange(len(table))), dtype)  # narrowing stored values again loses nothing
        write_shard(place / name, with_label_column(table, after), z, dtype)
        rows[name] = len(table)
    sums["sums"][sums["counts"] == 0] = 0.0  # the remainder of a class without rows is rounding error
    save_file(sums, place / CLASS_SUMS)
    renew_manifest(place, directory, old, rows, dataset_digest=new_dataset(targets.dataset.directory))


def _labels(targets: LabelTargets, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of a shard, int32 `(rows,)`, before and after the sweep."""
    table = pq.read_table(file, columns=["sample_id", "label"])
    before = table["label"].to_numpy()
    pairs = zip(table["sample_id"].to_pylist(), before.tolist(), strict=True)
    return before, np.array([targets.by_id.get(i, label) for i, label in pairs], np.int32)


def _move(sums: dict[str, torch.Tensor], z: torch.Tensor, before: np.ndarray, after: np.ndarray) -> None:
    """Move the features `z` `(n, d)` from the sums and counts of the classes `before` `(n,)` to those of `after`."""
    for labels, sign in ((torch.from_numpy(before).long(), -1), (torch.from_numpy(after).long(), 1)):
        sums["sums"].index_add_(0, labels, z.double(), alpha=sign)
        sums["counts"] += sign * torch.bincount(labels, minlength=len(sums["counts"]))


def activations(targets: LabelTargets, journal: Journal | None) -> Iterator[Residue]:
    """Renew the manifest of the activations, which names the dataset. The arrays hold no labels and stay."""
    directory = targets.root / ACTIVATIONS
    if not targets.changed.any() or not (directory / MANIFEST).is_file():
        return
    if journal is not None:
        old = read_manifest(directory, verify=False)
        place = journal.swap(directory)
        place.mkdir()
        for name in old["files"]:
            link(directory / name, place / name)
        renew_manifest(place, directory, old, {}, dataset_digest=new_dataset(targets.dataset.directory))
    yield from ()


def made_before(targets: LabelTargets, journal: Journal | None) -> Iterator[Residue]:
    """Remove what was made for the present request: split, models, their outputs per row and their features.

    They hold old labels, or were made from a model that was taught them. The pipeline makes them again. Hidden
    directories are staging areas.
    """
    if not targets.changed.any():
        return
    tops = (EVALUATION, SHADOW, UNLEARNED, MODELS / RETRAINED, FEATURES)
    found = [child for top in tops for child in sorted((targets.root / top).glob("[!.]*")) if child.is_dir()]
    keep = targets.root / FEATURES / ORIGINAL
    split = targets.root / SPLIT
    for directory in [*([split] if split.is_dir() else []), *(d for d in found if d != keep)]:
        yield Residue(str(directory.relative_to(targets.root)), "made under the old labels")
        if journal is not None:
            journal.drop(directory)


SWEEPERS = (dataset, features, activations, made_before)
