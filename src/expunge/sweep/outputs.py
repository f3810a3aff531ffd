"""Sweep the outputs of the pipeline: dataset, split, features, activations, evaluation, shadow models.

Each function yields what it found and, with a journal, also stages the new state without the erased rows. Shards
without an erased row are hard-linked, not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from expunge.core import Moments
from expunge.data.schema import ASSIGNMENT_SCHEMA, DUPLICATES, PARTS, TEST, TRAIN, UNSEEN
from expunge.data.split import ASSIGNMENT, REQUEST
from expunge.data.writer import find_duplicates
from expunge.features.store import CLASS_SUMS, MOMENTS, STORAGE_TYPES, Shards, narrow, write_shard
from expunge.sweep.journal import Journal, staged
from expunge.sweep.report import Residue
from expunge.sweep.shards import copy_without, link, renew_manifest
from expunge.sweep.targets import Targets
from expunge.system.arrays import new_array
from expunge.system.files import MANIFEST, digest_of, read_json, read_manifest, write_json
from expunge.system.paths import ACTIVATIONS, DATASET, EVALUATION, FEATURES, SHADOW, SPLIT

Sweeper = Callable[[Targets, Journal | None], Iterator[Residue]]
COPY_ROWS = 4096  # rows of activations that are copied at once, to bound memory


def dataset(targets: Targets, journal: Journal | None) -> Iterator[Residue]:
    """Sweep the dataset: rewrite its shards, and recompute duplicates and row counts."""
    if not targets.erased.any():
        return
    yield Residue(str(DATASET), "rows", int(targets.erased.sum()))
    if journal is None:
        return
    directory, old = targets.dataset.directory, targets.dataset.manifest
    place = journal.swap(directory)
    place.mkdir()
    start, rows = 0, {}
    for name in sorted(n for n in old["files"] if n.startswith("part-")):
        erased = targets.erased[start : start + old["files"][name]["rows"]]
        start += len(erased)
        if not erased.any():
            link(directory / name, place / name)
        elif not erased.all():
            copy_without(directory / name, place / name, erased)
            rows[name] = int((~erased).sum())
    columns = targets.dataset.table(["sample_id", "label", "split", "digest"])
    duplicates, counts = find_duplicates(columns.filter(~targets.erased).combine_chunks())
    pq.write_table(duplicates, place / DUPLICATES, compression="zstd")
    for name in old["files"]:
        if not name.startswith("part-") and name != DUPLICATES:
            link(directory / name, place / name)
    left = np.asarray(columns["split"].to_pylist())[~targets.erased]
    by_split = {f"rows_{name}": int((left == name).sum()) for name in (TRAIN, TEST, UNSEEN)}
    renew_manifest(place, directory, old, {**rows, DUPLICATES: duplicates.num_rows}, duplicates=counts, **by_split)


def split(targets: Targets, journal: Journal | None) -> Iterator[Residue]:
    """Sweep the split. The request keeps its counts and its digest, which identify it in registry and ledger."""
    directory = targets.root / SPLIT
    if not (directory / MANIFEST).is_file():
        return
    table = pq.read_table(directory / ASSIGNMENT)
    erased = targets.hits(table["sample_id"].to_pylist())
    if not erased.any():
        return
    yield Residue(str(SPLIT), "rows", int(erased.sum()))
    if journal is None:
        return
    place = journal.swap(directory)
    place.mkdir()
    rest = table.filter(~erased)
    rest = rest.set_column(1, ASSIGNMENT_SCHEMA.field("row"), [np.arange(len(rest), dtype=np.int64)])
    pq.write_table(rest, place / ASSIGNMENT, compression="zstd", use_dictionary=["part"])
    request = read_json(directory / REQUEST)
    write_json(place / REQUEST, {**request, "erased": request.get("erased", 0) + int(erased.sum())})
    parts = rest["part"].to_pylist()
    renew_manifest(
        place,
        directory,
        read_manifest(directory, verify=False),
        {ASSIGNMENT: len(rest)},
        parts={name: parts.count(name) for name in PARTS},
        dataset=new_dataset(targets.dataset.directory),
    )


def features(targets: Targets, journal: Journal | None) -> Iterator[Residue]:
    """Sweep the feature stores: remove the rows from the shards, and subtract them from moments and class sums."""
    for path in _manifests(targets.root / FEATURES):
        directory, old = path.parent, read_manifest(path.parent, verify=False)
        if "dim" not in old:  # no shards: the extraction was skipped, or the store equals another one
            continue
        names = sorted(n for n in old["files"] if n.endswith(".parquet"))
        found = {n: targets.hits(pq.read_table(directory / n, columns=["sample_id"])[0].to_pylist()) for n in names}
        count = sum(int(mask.sum()) for mask in found.values())
        if not count:
            continue
        yield Residue(str(directory.relative_to(targets.root)), "rows", count)
        if journal is not None:
            _rewrite_store(targets, journal.swap(directory), directory, old, found)


def _rewrite_store(targets: Targets, place: Path, directory: Path, old: dict, found: dict) -> None:  # type: ignore[type-arg]
    place.mkdir()
    moments, sums = Moments.load(directory / MOMENTS), load_file(directory / CLASS_SUMS)
    dtype = next(n for n, numbers in STORAGE_TYPES.items() if numbers.name == old.get("dtype", "float32"))
    rows = {}
    for name, erased in found.items():
        if not erased.any():
            link(directory / name, place / name)
            continue
        shard = Shards([directory / name], old["dim"], dtype)
        table = pq.read_table(directory / name, columns=[c for c in pq.read_schema(directory / name).names if c != "z"])
        removed = np.flatnonzero(erased & (np.asarray(table["split"]) == TRAIN))
        if len(removed):
            z, labels = (
                torch.from_numpy(shard.z(removed)),
                torch.from_numpy(np.asarray(table["label"], np.int64)[removed]),
            )
            moments = moments - Moments.of(z)
            sums["sums"].index_add_(0, labels, z.double(), alpha=-1)
            sums["counts"] -= torch.bincount(labels, minlength=len(sums["counts"]))
        if not erased.all():
            # Narrowing stored values again loses nothing, because rounding is idempotent.
            rest = narrow(shard.z(np.flatnonzero(~erased)), dtype)
            write_shard(place / name, table.filter(~erased), rest, dtype)
            rows[name] = int((~erased).sum())
    sums["sums"][sums["counts"] == 0] = 0.0  # the remainder of a class without rows is rounding error
    moments.save(place / MOMENTS)
    save_file(sums, place / CLASS_SUMS)
    renew_manifest(place, directory, old, rows, dataset_digest=new_dataset(targets.dataset.directory))


def activations(targets: Targets, journal: Journal | None) -> Iterator[Residue]:
    """Sweep the activations, arrays over the training rows in dataset order.

    An array of another length belongs to another dataset and may contain an erased row. Since activations are cheap to
    recompute, the whole directory is then removed.
    """
    directory = targets.root / ACTIVATIONS
    if not (directory / MANIFEST).is_file():
        return
    old = read_manifest(directory, verify=False)
    erased = targets.erased[targets.train]
    foreign = [n for n, f in old["files"].items() if f.get("rows") != len(erased)]
    if foreign or (erased.any() and old["files"]):
        what = "arrays of another dataset" if foreign else "rows"
        yield Residue(str(ACTIVATIONS), what, len(foreign) or int(erased.sum()) * len(old["files"]))
    elif not erased.any() or not old["files"]:
        return
    if journal is None:
        return
    if foreign:
        journal.drop(directory)
        return
    place = journal.swap(directory)
    place.mkdir()
    rest = np.flatnonzero(~erased)
    for name in old["files"]:
        array = np.load(directory / name, mmap_mode="r")
        out = new_array(place / name, array.dtype, (len(rest), *array.shape[1:]))
        for start in range(0, len(rest), COPY_ROWS):
            out[start : start + COPY_ROWS] = array[rest[start : start + COPY_ROWS]]
        out.flush()
    counts = dict.fromkeys(old["files"], len(rest))
    renew_manifest(place, directory, old, counts, dataset_digest=new_dataset(targets.dataset.directory))


def evaluation(targets: Targets, journal: Journal | None) -> Iterator[Residue]:
    """Sweep the per-row outputs of every evaluated model."""
    for path in _manifests(targets.root / EVALUATION):
        directory, old = path.parent, read_manifest(path.parent, verify=False)
        found = {}
        for name in sorted(n for n in old["files"] if n.endswith(".parquet")):
            found[name] = targets.hits(pq.read_table(directory / name, columns=["sample_id"])[0].to_pylist())
        count = sum(int(mask.sum()) for mask in found.values())
        if not count:
            continue
        yield Residue(str(directory.relative_to(targets.root)), "rows", count)
        if journal is None:
            continue
        place = journal.swap(directory)
        place.mkdir()
        for name in old["files"]:
            if name in found and found[name].any():
                copy_without(directory / name, place / name, found[name])
            else:
                link(directory / name, place / name)
        renew_manifest(place, directory, old, {n: int((~m).sum()) for n, m in found.items() if m.any()})


def shadow(targets: Targets, journal: Journal | None) -> Iterator[Residue]:
    """Sweep the shadow models, which were trained on the rows, and their scores of every row.

    All of them are removed.
    """
    members = sorted((targets.root / SHADOW).glob("*rained-*"))
    if not targets.erased.any() or not members:
        return
    yield Residue(str(SHADOW), "models with scores of rows", len(members))
    for member in members if journal is not None else []:
        assert journal is not None
        journal.drop(member)


def _manifests(top: Path) -> list[Path]:
    """Return the manifests below `top`, except in hidden directories, which are staging areas."""
    found = sorted(top.rglob(MANIFEST))
    return [p for p in found if not any(part.startswith(".") for part in p.relative_to(top).parts)]


def new_dataset(directory: Path) -> str:
    """Return the digest of the dataset after the sweep: of its staged state, or of the present one if unchanged."""
    place = staged(directory)
    files = read_json((place if place.exists() else directory) / MANIFEST)["files"]
    return digest_of({name: entry["sha256"] for name, entry in files.items()})


# The dataset comes first, because the manifests of the others contain its digest.
SWEEPERS: tuple[Sweeper, ...] = (dataset, split, features, activations, evaluation, shadow)
