"""Labels that were corrected for good, so that a source, an old commit or a backup cannot bring the old ones back.

    data/tombstones/labels.parquet    `id` and `content`, the keyed 16-byte BLAKE2b digests of a row, and its `label`

The file lies beside the tombstones and uses their key. Neither git nor DVC tracks it. A label is stored as the name of
its class, because indices change when a class is added to the source.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expunge.data.tombstones import BYTES, VARIABLE, Tombstones, home, key_of, mac
from expunge.system.errors import DataError

LABELS = "labels.parquet"
UNCHANGED = -1  # in place of a label: the row was never corrected
SCHEMA = pa.schema([("id", pa.binary(BYTES)), ("content", pa.binary(BYTES)), ("label", pa.string())])

Labels = NDArray[np.int32]


@dataclass(frozen=True)
class CorrectedLabels:
    """The corrected labels of a folder. `rows` maps the digest of an id to that of the content and the class name."""

    directory: Path
    key: bytes
    rows: Mapping[bytes, tuple[bytes, str]]

    @classmethod
    def read(cls, directory: Path) -> CorrectedLabels | None:
        """Read `directory`; None if no label was corrected yet. Raises DataError for a damaged folder."""
        file = directory / LABELS
        if not file.is_file():
            return None
        key = key_of(directory)
        try:
            columns = pq.ParquetFile(file).read().cast(SCHEMA).to_pydict()
        except (OSError, ValueError, pa.ArrowException) as e:
            raise DataError(
                f"{file}: the corrected labels cannot be read ({e}); restore the file, because without it the old "
                "labels could return"
            ) from e
        return cls(directory, key, {i: (c, name) for i, c, name in zip(*columns.values(), strict=True)})

    @classmethod
    def near(cls, path: Path | str) -> CorrectedLabels | None:
        """Read the corrected labels that apply to the data at `path`, as `Tombstones.near` finds tombstones."""
        if named := os.environ.get(VARIABLE):
            return cls.read(Path(named))
        for parent in Path(path).resolve().parents:
            if (home(parent) / LABELS).is_file():
                return cls.read(home(parent))
        return None

    @classmethod
    def open(cls, directory: Path, keep: bool = True) -> CorrectedLabels:
        """Like `read`, but returns an empty set if there is none; `keep` writes a missing key to disk."""
        return cls.read(directory) or cls(directory, Tombstones.open(directory, keep).key, {})

    def plus(self, ids: Iterable[str], contents: Iterable[bytes], names: Iterable[str]) -> CorrectedLabels:
        """Return these labels and those of more rows, which take precedence, without writing them."""
        more = {
            mac(i.encode(), self.key): (mac(content, self.key), name)
            for i, content, name in zip(ids, contents, names, strict=True)
        }
        return CorrectedLabels(self.directory, self.key, {**self.rows, **more})

    def __len__(self) -> int:
        return len(self.rows)

    def to_bytes(self) -> bytes:
        """Serialize the labels, sorted by digest. The result is deterministic for given rows and key."""
        rows = sorted((i, content, name) for i, (content, name) in self.rows.items())
        columns = list(zip(*rows, strict=True)) or [(), (), ()]
        out = io.BytesIO()
        pq.write_table(
            pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA), out
        )
        return out.getvalue()

    def labels(
        self, what: Path | str, ids: Sequence[str], contents: Sequence[bytes], class_names: Sequence[str]
    ) -> Labels:
        """Return the corrected label of each row, int32 `(n,)`, and UNCHANGED for rows that were never corrected.

        Raises DataError, which names `what`, for a row with the id of a corrected row but other content, and for a
        corrected label that is no class any more.
        """
        found = np.full(len(ids), UNCHANGED, np.int32)
        number = {name: i for i, name in enumerate(class_names)}
        altered = 0
        for row, sample_id in enumerate(ids):
            known = self.rows.get(mac(sample_id.encode(), self.key))
            if known is None:
                continue
            content, name = known
            altered += content != mac(contents[row], self.key)
            if name not in number:
                raise DataError(
                    f"{what}: labels were corrected to {name!r}, which is no class of it any more; name all classes"
                )
            found[row] = number[name]
        if altered:
            raise DataError(
                f"{what}: {altered} rows have the ids of rows whose labels were corrected, but different content, so "
                "it is not known whether the labels apply; give new rows new ids"
            )
        return found

    def corrected(
        self, what: Path | str, ids: Sequence[str], contents: Sequence[bytes], labels: Labels, names: Sequence[str]
    ) -> Labels:
        """Return `labels (n,)` with the corrected ones in place of the old ones. Raises the errors of `labels`."""
        wanted = self.labels(what, ids, contents, names)
        return np.where(wanted == UNCHANGED, labels, wanted).astype(np.int32)

    def apply(self, table: pa.Table, what: str, names: Sequence[str]) -> pa.Table:
        """Return rows of a source with the corrected labels in place of the old ones that the source still has.

        The reader has already assigned splits, which may depend on the labels of the source.
        """
        columns = table["sample_id"].to_pylist(), table["digest"].to_pylist(), table["label"].to_numpy()
        return with_label_column(table, self.corrected(what, *columns, names))


def with_label_column(table: pa.Table, labels: Labels) -> pa.Table:
    """Return `table` with `labels (n,)` as its column `label`."""
    at = table.column_names.index("label")
    return table.set_column(at, table.schema.field(at), pa.array(labels, pa.int32()))


def refuse_old(
    corrected: CorrectedLabels | None,
    what: Path,
    ids: Sequence[str],
    contents: Sequence[bytes],
    labels: Labels,
    names: Sequence[str],
) -> None:
    """Raise DataError if `what` contains an old label of a corrected row; `names` are those of the classes."""
    if corrected is None:
        return
    back = int((corrected.corrected(what, ids, contents, labels, names) != labels).sum())
    if back:
        raise DataError(
            f"{what}: contains the old labels of {back} corrected rows again (from an old commit, a restored backup or "
            "an interrupted sweep); run `expunge sweep --apply` to replace them"
        )
