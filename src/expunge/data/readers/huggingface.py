"""Data sets of the Hugging Face Hub at a pinned commit, and local directories, through the library `datasets`.

A source is `hf:OWNER/NAME@COMMIT`, `hf:OWNER/NAME:CONFIG@COMMIT`, or `hf:DIRECTORY`. A directory has files that
`datasets` reads (Parquet, CSV, JSON lines, Arrow, image folders) or was written by its `save_to_disk`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expunge.data.readers.labels import index_labels
from expunge.data.readers.tables import ROLES
from expunge.data.schema import ENCODED, TEST, TEXT, TRAIN
from expunge.data.source import Batch, Source, split_names, stratified_test_rows
from expunge.system.errors import DataError

PREFIX = "hf:"
NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<revision>.+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
BATCH = 64
# The builders of `datasets` for tables and images. Other builders run code, query databases, or read pickles.
BUILDERS = ("arrow", "cache", "csv", "imagefolder", "json", "parquet", "text")
COLUMN_ROLES = ("image", "text", "label", "subject", "id")


@dataclass(frozen=True)
class HubSplit:
    """The rows of one split of the source; `split` is their split in the dataset (None: to be drawn)."""

    name: str
    split: str | None
    rows: Any  # datasets.Dataset


def read_huggingface(
    source: str,
    cache: Path,
    columns: Mapping[str, str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Source:
    """Read the splits train and test; validation replaces test if that is missing or unlabelled.

    Without a test and a validation split, a seeded stratified `test_fraction` is drawn. Ids are `train-000`, unless
    there is a column `sample_id` or `id`. The image column is the one of feature type Image. If there is none, the text
    column is the column of strings that is not the label. The label column is the one of type ClassLabel, else `label`.
    `columns` names them if this is not unique, with the keys image or text, label, subject and id. Downloads go to
    `cache`. Raises DataError for a revision that is not pinned or not found, for formats that could run code, and for
    missing or ambiguous columns.
    """
    splits, base = _splits(source, cache)
    parts = _parts(splits, source, columns or {})
    names, labels = _labels(parts, source, columns or {})
    first = parts[0].rows
    roles = _roles(first.features, source, columns or {})
    encoding = ENCODED if "image" in roles else TEXT
    drawn = None
    if parts[0].split is None:
        drawn = split_names(stratified_test_rows(labels, test_fraction, seed))

    def batches() -> Iterator[Batch]:
        start = 0
        for part in parts:
            width = len(str(max(len(part.rows) - 1, 0)))
            rows = _content(part.rows, roles)
            for i in range(0, len(rows), BATCH):
                got = rows[i : i + BATCH]
                n = len(got[roles["label"]])
                where = f"{source}, split {part.name}"
                ids = [f"{part.name}-{k:0{width}d}" for k in range(i, i + n)]
                if "id" in roles:
                    ids = [str(v) for v in _present(got[roles["id"]], where, roles["id"], i)]
                subjects = None
                if "subject" in roles:
                    subjects = [None if v is None else str(v) for v in got[roles["subject"]]]
                key = roles["image" if encoding == ENCODED else "text"]
                content = _present(got[key], where, key, i)
                if encoding == ENCODED:
                    content = [_bytes(v, (cache, base), where, i + k) for k, v in enumerate(content)]
                splits = drawn[start + i : start + i + n] if drawn else [part.split or TRAIN] * n
                yield Batch(ids, labels[start + i : start + i + n], splits, content, subjects)
            start += len(rows)

    return Source(source.split("@")[0], names, encoding, batches(), has_subject="subject" in roles)


def _library() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as e:
        raise DataError(f"data.source hf: needs the library datasets ({e}); run pip install 'expunge[hub]'") from None


def _splits(source: str, cache: Path) -> tuple[Mapping[str, Any], Path]:
    """Return all splits of the source, and the directory from which it may read image files."""
    datasets, name = _library(), source.removeprefix(PREFIX)
    local = Path(name)
    if local.is_dir():
        if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            saved = _quietly(source, datasets.load_from_disk, str(local))
            return (saved if isinstance(saved, dict) else {TRAIN: saved}), local
        return _built(source, datasets, cache, path=str(local)), local
    if name.startswith((".", "/")):
        raise DataError(f"{name}: no such directory (data.source)")
    found = NAME.fullmatch(name)
    if not found:
        raise DataError(f"data.source: {source!r} is neither hf:OWNER/NAME@COMMIT nor a directory")
    revision = found["revision"] or ""
    if not COMMIT.fullmatch(revision):
        raise DataError(
            f"data.source: {source!r} names no commit, and branches and tags can move; write @ and the 40 digits of "
            "a commit"
        )
    return _built(source, datasets, cache, path=found["repo"], name=found["config"], revision=revision), cache


def _built(source: str, datasets: Any, cache: Path, **where: Any) -> Mapping[str, Any]:
    options = {k: v for k, v in where.items() if v is not None}
    builder = _quietly(source, datasets.load_dataset_builder, cache_dir=str(cache), **options)
    kind = type(builder).__module__.split(".")
    if kind[:2] != ["datasets", "packaged_modules"] or kind[2] not in BUILDERS:
        raise DataError(
            f"{source}: its files are read by {'.'.join(kind)}, which is not allowed; use a data set that is read by "
            f"one of {', '.join(BUILDERS)}"
        )
    _quietly(source, builder.download_and_prepare)
    splits: Mapping[str, Any] = _quietly(source, builder.as_dataset)
    return splits


def _quietly(source: str, call: Any, *args: Any, **options: Any) -> Any:
    """Call the library without progress bars. Raises DataError with the first line of its error."""
    progress = importlib.import_module("datasets.utils.logging")
    progress.disable_progress_bar()
    try:
        return call(*args, **options)
    except Exception as e:  # of HTTP, cache locks, Arrow, a missing revision, features that do not match
        cause = e.__cause__ if "generating the dataset" in str(e) and e.__cause__ else e
        line = (str(cause).strip().splitlines() or [""])[0]
        raise DataError(f"{source}: {type(cause).__name__}: {line}; check the name, the commit and the files") from e


def _parts(splits: Mapping[str, Any], source: str, columns: Mapping[str, str]) -> list[HubSplit]:
    if TRAIN not in splits:
        raise DataError(f"{source}: has no split 'train'; its splits are {', '.join(splits)}")
    test = TEST if TEST in splits else "validation"
    if TEST in splits and "validation" in splits:
        label = _roles(splits[TEST].features, source, columns)["label"]
        if all(v in (None, -1) for v in splits[TEST][label]):
            test = "validation"  # the test split of a competition, whose labels are withheld
    if test not in splits:
        return [HubSplit(TRAIN, None, splits[TRAIN])]
    return [HubSplit(TRAIN, TRAIN, splits[TRAIN]), HubSplit(test, TEST, splits[test])]


def _roles(features: Mapping[str, Any], source: str, columns: Mapping[str, str]) -> dict[str, str]:
    """Map each role to its column: as `columns` says, else by feature type, else by name."""
    for role, name in columns.items():
        if role not in COLUMN_ROLES:
            raise DataError(f"data.columns: unknown role {role!r}; the roles are {', '.join(COLUMN_ROLES)}")
        if name not in features:
            raise DataError(
                f"{source}: has no column {name!r} (data.columns.{role}); its columns are {', '.join(features)}"
            )
    kinds = {name: type(f).__name__ for name, f in features.items()}
    roles = dict(columns)
    for role in ("subject", "id"):
        present = [n for n in ROLES[role] if n in features]
        if role not in roles and present:
            roles[role] = present[0]
    if "label" not in roles:
        typed = [n for n, kind in kinds.items() if kind == "ClassLabel"] or [n for n in ROLES["label"] if n in kinds]
        roles["label"] = _one(typed, "label", source, features)
    if "image" not in roles and "text" not in roles:
        images = [n for n, kind in kinds.items() if kind == "Image"]
        texts = [n for n, f in features.items() if getattr(f, "dtype", None) in ("string", "large_string")]
        if images:
            roles["image"] = _one(images, "image", source, features)
        else:
            roles["text"] = _one([n for n in texts if n not in roles.values()], "text", source, features)
    if "image" in roles and kinds[roles["image"]] != "Image":
        raise DataError(f"{source}: column {roles['image']!r} is of type {kinds[roles['image']]}, but Image is needed")
    return roles


def _one(found: Sequence[str], role: str, source: str, features: Mapping[str, Any]) -> str:
    if len(found) != 1:
        state = f"{len(found)} columns could be the {role} ({', '.join(found)})" if found else f"no {role} column"
        raise DataError(f"{source}: {state}; set data.columns.{role} to one of {', '.join(features)}")
    return found[0]


def _labels(parts: Sequence[HubSplit], source: str, columns: Mapping[str, str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the class names and the int32 labels `(n,)` of all parts. The names of a ClassLabel keep their order."""
    values: list[Any] = []
    names: tuple[str, ...] | None = None
    for part in parts:
        label = _roles(part.rows.features, source, columns)["label"]
        got = _present(part.rows[label][:], f"{source}, split {part.name}", label, 0)
        own = tuple(getattr(part.rows.features[label], "names", ()) or ()) or None
        if part is not parts[0] and own != names:
            raise DataError(f"{source}: the splits {parts[0].name} and {part.name} have different class names")
        values, names = values + got, own
    if names is None:
        return index_labels(values, source)
    return names, np.array(values, dtype=np.int32)


def _content(rows: Any, roles: Mapping[str, str]) -> Any:
    """Select the columns that have a role; images stay encoded, as the bytes or the path of their file."""
    selected = rows.select_columns(sorted(set(roles.values())))
    return selected.cast_column(roles["image"], _library().Image(decode=False)) if "image" in roles else selected


def _present(values: Sequence[Any], where: str, column: str, first: int) -> list[Any]:
    for i, value in enumerate(values):
        if value is None:
            raise DataError(f"{where}: row {first + i} has no {column}")
    return list(values)


def _bytes(picture: Mapping[str, Any], allowed: tuple[Path, Path], where: str, row: int) -> bytes:
    """Return the bytes of an image, which are in the row or in a file below one of the `allowed` directories."""
    if picture.get("bytes") is not None:
        return bytes(picture["bytes"])
    file = Path(picture.get("path") or "").resolve()
    if not any(file.is_relative_to(directory.resolve()) for directory in allowed):
        raise DataError(f"{where}: the image of row {row} is a file outside the data set ({file})")
    try:
        return file.read_bytes()
    except OSError as e:
        raise DataError(f"{where}: the image of row {row} cannot be read ({file}: {e.strerror})") from e
