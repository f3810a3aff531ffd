"""Write a small workspace with people: all files that hold rows, as the stages write them, without DVC and registry."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from expunge.core import Moments
from expunge.data.dataset import Dataset
from expunge.data.prepare import open_source
from expunge.data.split import Split, split
from expunge.data.writer import write_dataset
from expunge.features.store import CLASS_SUMS, MOMENTS, write_shard
from expunge.system.files import staged_dir, write_manifest

ROOT = Path(__file__).parents[2]
ROWS, PEOPLE, SHARD, DIM = 240, 24, 40, 6
NPZ = Path("data/source/people.npz")


def person(i: int) -> str:
    return f"subject-{i:03d}-{'abcdef'[i % 6]}"


def write_npz(file: Path, rows: int = ROWS, people: int = PEOPLE, seed: int = 0) -> None:
    """Write random pictures of people. The rows of a person are adjacent, so few shards hold them.

    Every fifth row is a test row.
    """
    rng = np.random.default_rng(seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    each = rows // people
    np.savez_compressed(
        file,
        images=rng.integers(0, 256, (rows, 6, 5, 1), dtype=np.uint8),
        labels=np.arange(rows) % 3,
        ids=np.array([f"record-{i:05d}" for i in range(rows)]),
        subjects=np.array([person(i // each) for i in range(rows)]),
        split=np.array(["test" if i % 5 == 4 else "train" for i in range(rows)]),
    )


def params(root: Path) -> None:
    text = (ROOT / "params.demo.yaml").read_text(encoding="utf-8")
    text = text.replace("source: digits ", "source: npz ").replace("path: null ", f"path: {NPZ} ", 1)
    (root / "params.yaml").write_text(text, encoding="utf-8")


def workspace(root: Path, forget: list[int], rows: int = ROWS, people: int = PEOPLE, shard: int = SHARD) -> Path:
    """Write a workspace into `root` and return it. The split forgets the training rows of the people `forget`."""
    write_npz(root / NPZ, rows, people)
    params(root)
    write_dataset(root / "data/dataset", open_source("npz", root / NPZ, 0.2, 0), shard_rows=shard)
    (root / "data/requests").mkdir()
    (root / "data/requests/one.txt").write_text("".join(f"{person(i)}\n" for i in forget), encoding="utf-8")
    dataset = Dataset(root / "data/dataset")
    split(dataset, root / "data/split", selector="subjects", file=root / "data/requests/one.txt")
    features(root, dataset, shard)
    per_row(root, dataset)
    return root


def features(root: Path, dataset: Dataset, shard: int) -> None:
    table = dataset.table(["sample_id", "label", "split", "subject"])
    z = np.random.default_rng(1).normal(size=(dataset.rows, DIM)).astype(np.float32)
    train = dataset.splits() == "train"
    labels = torch.from_numpy(dataset.labels()[train].astype(np.int64))
    with staged_dir(root / "data/features/original") as out:
        counts = {}
        for n, start in enumerate(range(0, dataset.rows, shard)):
            part = table.slice(start, shard)
            write_shard(out / f"part-{n:05d}.parquet", part, z[start : start + shard])
            counts[f"part-{n:05d}.parquet"] = len(part)
        Moments.of(z[train]).save(out / MOMENTS)
        sums = torch.zeros(3, DIM, dtype=torch.float64).index_add_(0, labels, torch.from_numpy(z[train]).double())
        save_file({"sums": sums, "counts": torch.bincount(labels, minlength=3)}, out / CLASS_SUMS)
        write_manifest(
            out, "test", rows=counts, dim=DIM, dtype="float32", model_digest="sha256:m", dataset_digest=dataset.digest
        )


def per_row(root: Path, dataset: Dataset) -> None:
    """Write an evaluation and activations, which also hold one value for each row."""
    rng = np.random.default_rng(2)
    logits = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=dataset.rows * 3).astype(np.float32)), 3)
    columns = {"sample_id": dataset.sample_ids(), "part": Split(root / "data/split").parts, "logits": logits}
    with staged_dir(root / "data/evaluation/loft") as out:
        pq.write_table(pa.table(columns), out / "loft.parquet", compression="zstd")
        write_manifest(out, "test", rows={"loft.parquet": dataset.rows})
    train = int((dataset.splits() == "train").sum())
    with staged_dir(root / "data/activations") as out:
        np.save(out / "stage1.npy", rng.normal(size=(train, 2, 2, 3)).astype(np.float16))
        write_manifest(out, "test", rows={"stage1.npy": train})


def files(root: Path) -> dict[str, bytes]:
    """Return the content of every file of the workspace by name, except the sweep's lock and the tombstones' key."""
    skipped = {".expunge/sweep/lock", "data/tombstones/key"}
    found = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
    return {name: p.read_bytes() for name, p in found.items() if name not in skipped}


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
