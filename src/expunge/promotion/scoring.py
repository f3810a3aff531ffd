"""Classify the images or texts of a Parquet file with a served classifier, and write its predictions to another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expunge.data.images import decode
from expunge.serving.servable import ANY, BATCH, Contract, Servable
from expunge.system.errors import DataError
from expunge.system.progress import progress

IDS = ("sample_id", "id")
CLASSES = "classes"  # key in the file's metadata for the class names, in the order of `probabilities`


def score_parquet(servable: Servable, source: Path, out: Path, model: str) -> int:
    """Write predictions for the rows of `source` to `out`, in the same order, and return the number of rows.

    `source` has a column `image` (file bytes, or a struct with a field `bytes`) or `text`, depending on the model; a
    column `sample_id` or `id` is copied. `out` has that column, `predicted` (class name), `probability` (of that class)
    and `probabilities (C,)` float32. `model` names the version in the file's metadata. Rows are streamed in batches of
    256, and `out` is renamed into place once complete. Raises DataError, which names the file and, if one is unusable,
    the row.
    """
    with _open(source) as file:
        column = "text" if servable.contract.texts else "image"
        names = file.schema_arrow.names
        if column not in names:
            raise DataError(f"{source}: no column {column!r}, and the model takes {servable.contract.takes}")
        key = next((name for name in IDS if name in names), None)
        schema = _schema(servable.contract, file.schema_arrow.field(key) if key else None, model)
        tmp = out.with_name(f".{out.name}.tmp")
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                pq.ParquetWriter(tmp, schema) as writer,
                progress("predict", file.metadata.num_rows, "rows") as advance,
            ):
                for start, batch in _batches(file, source, [column, *([key] if key else [])]):
                    inputs = _inputs(batch[column], servable.contract, source, start)
                    columns = [batch[key]] if key else []
                    writer.write_table(
                        pa.table(
                            [*columns, *_answers(servable.probabilities(inputs), servable.contract.classes)], schema
                        )
                    )
                    advance(batch.num_rows)
            tmp.replace(out)
        finally:
            tmp.unlink(missing_ok=True)
        return int(file.metadata.num_rows)


def _open(source: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(source)
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{source}: is not a complete Parquet file ({e})") from e


def _batches(file: pq.ParquetFile, source: Path, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield batches of rows, each with the number of its first row."""
    start = 0
    try:
        for batch in file.iter_batches(BATCH, columns=columns):
            yield start, batch
            start += batch.num_rows
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{source}: after row {start} it cannot be read ({e})") from e


def _inputs(column: pa.Array, contract: Contract, source: Path, start: int) -> NDArray[np.uint8] | list[str]:
    """Return texts unchanged, or images decoded to the shape that the model takes.

    Raises DataError naming file and row.
    """
    values: list[Any] = column.to_pylist()
    if None in values:
        raise DataError(f"{source}: row {start + values.index(None)} is empty")
    if contract.texts:
        return values
    images = [_image(value, f"{source}, row {start + i}") for i, value in enumerate(values)]
    wanted = contract.shape if len(contract.shape) == 3 else (*contract.shape, 1)
    for i, image in enumerate(images):
        if any(size not in (ANY, given) for size, given in zip(wanted, image.shape, strict=True)):
            raise DataError(f"{source}, row {start + i}: an image {image.shape}; the model takes {contract.shape}")
        if image.shape != images[0].shape:
            raise DataError(f"{source}, row {start + i}: {image.shape}, its neighbours {images[0].shape}; sort by size")
    stack = np.stack(images)
    return stack if len(contract.shape) == 3 else stack[..., 0]


def _image(value: object, name: str) -> NDArray[np.uint8]:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise DataError(f"{name}: {type(content).__name__}; an image is the bytes of a file")
    return decode(content, name)


def _schema(contract: Contract, key: pa.Field | None, model: str) -> pa.Schema:
    fields = [
        pa.field("predicted", pa.string()),
        pa.field("probability", pa.float32()),
        pa.field("probabilities", pa.list_(pa.float32(), len(contract.classes))),
    ]
    metadata = {CLASSES: "\n".join(contract.classes), "model": model}
    return pa.schema([*([key] if key is not None else []), *fields], metadata=metadata)


def _answers(p: NDArray[np.float32], classes: Sequence[str]) -> list[pa.Array]:
    best = p.argmax(1)
    return [
        pa.array([classes[c] for c in best], pa.string()),
        pa.array(p[np.arange(len(p)), best], pa.float32()),
        pa.FixedSizeListArray.from_arrays(pa.array(p.reshape(-1), pa.float32()), p.shape[1]),
    ]
