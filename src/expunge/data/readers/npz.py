"""Read a NumPy .npz archive whose images have one shape. Archives with pickled objects are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from expunge.data.readers.labels import index_labels
from expunge.data.schema import RAW, TEST, TRAIN
from expunge.data.source import Source, array_batches, split_names, stratified_test_rows
from expunge.system.errors import DataError
from expunge.system.limits import in_force

IMAGES, LABELS = ("x", "images"), ("y", "labels")
KNOWN = (*IMAGES, *LABELS, "x_train", "y_train", "x_test", "y_test", "ids", "subjects", "split", "class_names")


def read_npz(file: Path, test_fraction: float = 0.2, seed: int = 0) -> Source:
    """Read images `x` or `images` and labels `y` or `labels`; optional are `ids`, `subjects`, `split`, `class_names`.

    Images are uint8 `(n, h, w)` or `(n, h, w, c)` with c 1 or 3. The split is `split` ("train" or "test" per row).
    Alternatively `x_train`, `y_train`, `x_test` and `y_test` replace x and y; `ids` and `subjects` then have the order
    train, test. Otherwise a seeded stratified `test_fraction` is drawn. The whole archive is held in memory. Raises
    DataError for an unreadable archive and for arrays that are unknown, missing or of a wrong type or shape.
    """
    arrays = _load(file)
    unknown = sorted(set(arrays) - set(KNOWN))
    if unknown:
        raise DataError(f"{file}: unknown array {unknown[0]!r}; the known arrays are {', '.join(KNOWN)}")
    splits: list[str] | None = None
    if "x_train" in arrays:
        parts = [(_one(arrays, (f"x_{s}",), file), _one(arrays, (f"y_{s}",), file), s) for s in (TRAIN, TEST)]
        for images, labels, _ in parts:
            _same_rows(file, len(images), y=labels)
        if len({images.shape[1:] for images, _, _ in parts}) > 1:
            raise DataError(
                f"{file}: x_train has the shape {parts[0][0].shape} and x_test {parts[1][0].shape}; all images must "
                "have the same size"
            )
        images = np.concatenate([i for i, _, _ in parts])
        labels = np.concatenate([y for _, y, _ in parts])
        splits = [s for i, _, s in parts for _ in range(len(i))]
    else:
        images, labels = _one(arrays, IMAGES, file), _one(arrays, LABELS, file)
    images = _as_images(images, file)
    optional = {k: arrays[k] for k in ("ids", "subjects", "split") if k in arrays}
    _same_rows(file, len(images), labels=labels, **optional)
    names, indices = index_labels(labels, str(file))
    for name, array in {k: arrays[k] for k in ("ids", "subjects", "split", "class_names") if k in arrays}.items():
        if array.ndim != 1 or array.dtype.kind not in "iuU":
            raise DataError(
                f"{file}: {name} has the type {array.dtype} and the shape {array.shape}; store it as a "
                "one-dimensional array of integers or text"
            )
    if "class_names" in arrays:
        names = tuple(str(n) for n in arrays["class_names"])
    if "split" in arrays:
        splits = [str(s) for s in arrays["split"]]
    if splits is None:
        splits = split_names(stratified_test_rows(indices, test_fraction, seed))
    width = len(str(len(images) - 1))
    ids = [str(i) for i in arrays["ids"]] if "ids" in arrays else [f"{i:0{width}d}" for i in range(len(images))]
    subjects = [str(s) for s in arrays["subjects"]] if "subjects" in arrays else None
    batches = array_batches(images, indices, splits, ids, subjects)
    return Source("npz", names, RAW, batches, has_subject=subjects is not None)


def _load(file: Path) -> dict[str, np.ndarray]:
    try:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{file}: is a single array; store an .npz archive with images and labels")
        with archive:
            _refuse_large(archive, file)
            return {name: archive[name] for name in archive.files}
    except DataError:
        raise
    except Exception as e:  # zip and header parsers raise BadZipFile, zlib.error, MemoryError and others
        raise DataError(f"{file}: not a readable .npz archive without pickled objects ({e})") from e


def _refuse_large(archive: np.lib.npyio.NpzFile, file: Path) -> None:
    """Raise DataError if the archive declares more bytes than allowed. This is checked before decompression."""
    size = sum(entry.file_size for entry in archive.zip.infolist()) if archive.zip is not None else 0
    if size > (most := in_force().archive_bytes):
        raise DataError(
            f"{file}: its arrays have {size:,} bytes, but at most {most:,} are held in memory (limits.archive_gib); "
            "use data.source: image-folder or parquet"
        )


def _one(arrays: dict[str, np.ndarray], names: tuple[str, ...], file: Path) -> np.ndarray:
    found = [n for n in names if n in arrays]
    if len(found) != 1:
        raise DataError(
            f"{file}: must contain exactly one array {' or '.join(names)}; it holds {', '.join(sorted(arrays))}"
        )
    return arrays[found[0]]


def _same_rows(file: Path, rows: int, **columns: np.ndarray) -> None:
    for name, column in columns.items():
        if len(np.atleast_1d(column)) != rows:
            raise DataError(f"{file}: {name} has {len(np.atleast_1d(column))} rows, but there are {rows} images")


def _as_images(images: np.ndarray, file: Path) -> np.ndarray:
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8:
        raise DataError(f"{file}: images have the type {images.dtype}; store them as uint8, 0 to 255")
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            f"{file}: images have the shape {images.shape}; store them as (n, height, width) or (n, height, width, 1 "
            "or 3)"
        )
    return images
