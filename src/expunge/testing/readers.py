"""Contract test for readers of other packages."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expunge.data.images import decode
from expunge.data.prepare import Reader
from expunge.data.schema import ENCODED, RAW, SPLITS, TEXT, TRAIN
from expunge.data.source import Batch, Source
from expunge.data.writer import write_dataset
from expunge.testing.promises import contents, differing, other_chance, promised, state_of_chance


@dataclass(frozen=True)
class _Rows:
    """All rows of a source, in the source's order."""

    ids: list[str]
    labels: list[int]
    splits: list[str]
    contents: list[Any]
    subjects: list[str | None]
    source: Source


def check_reader(read: Reader, path: Path | None = None) -> dict[str, Any]:
    """Read all rows several times, as `prepare` does with `data.path: path`, and return the manifest of the dataset.

    Raises AssertionError, naming the row, if a batch violates `Batch` or `Source`: ids must be unique texts, labels
    integers of known classes, splits "train" or "test", and content images uint8 `(n, h, w, 1 or 3)`, image files that
    can be decoded, or texts. Also raises AssertionError if a class has no training row; if reading again gives other
    rows; if another `test_fraction` or `seed` changes more than the split; if the reader draws from a global generator;
    and if the dataset has different bytes when it is written again.
    """
    with promised("the reader fails"), other_chance(1):
        state = state_of_chance()
        first = _rows(read(path=path, test_fraction=0.25, seed=0))
        moved = state != state_of_chance()
    assert not moved, "reading uses a global generator: draw from numpy.random.default_rng(seed)"
    _check(first)
    with promised("the reader fails the second time"), other_chance(2):
        again = _rows(read(path=path, test_fraction=0.25, seed=0))
    for what in ("ids", "labels", "splits", "contents", "subjects"):
        assert getattr(first, what) == getattr(again, what), f"{what} differ when the source is read again"
    with promised("the reader fails with another test_fraction and seed"), other_chance(1):
        other = _rows(read(path=path, test_fraction=0.5, seed=1))
    for what in ("ids", "labels", "contents", "subjects"):
        same = getattr(first, what) == getattr(other, what)
        assert same, f"{what} change with test_fraction or seed: only the split may"
    return _written_twice(read, path)


def _rows(source: Source) -> _Rows:
    assert isinstance(source, Source), f"the reader returned a {type(source).__name__}, not a Source"
    rows = _Rows([], [], [], [], [], source)
    for batch in source.batches:
        _check_batch(batch, source)
        rows.ids.extend(batch.sample_ids)
        rows.labels.extend(np.asarray(batch.labels).tolist())
        rows.splits.extend(batch.splits)
        raw = isinstance(batch.content, np.ndarray)
        rows.contents.extend([(c.shape, c.tobytes()) for c in batch.content] if raw else batch.content)  # type: ignore[union-attr]
        rows.subjects.extend(batch.subjects if batch.subjects is not None else [None] * len(batch.sample_ids))
    return rows


def _check_batch(batch: Batch, source: Source) -> None:
    n, labels, content = len(batch.sample_ids), np.asarray(batch.labels), batch.content
    sizes = {"labels": len(labels), "splits": len(batch.splits), "content": len(content)}
    for what, size in sizes.items():
        assert size == n, f"a batch has {n} ids and {size} {what}"
    assert labels.ndim == 1 and labels.dtype.kind in "iu", f"labels are {labels.dtype} {labels.shape}, not int (n,)"
    if source.encoding == RAW:
        good = isinstance(content, np.ndarray) and content.dtype == np.uint8 and content.ndim == 4
        what = f"{content.dtype} {content.shape}" if isinstance(content, np.ndarray) else type(content).__name__
        assert good and content.shape[3] in (1, 3), f"raw images are {what}, not uint8 (n, h, w, 1 or 3)"  # type: ignore[union-attr]
    else:
        kind = bytes if source.encoding == ENCODED else str
        odd = [type(c).__name__ for c in content if not isinstance(c, kind)]
        assert isinstance(content, list) and not odd, f"encoding {source.encoding!r} needs a list of {kind.__name__}"
    given = batch.subjects is not None
    assert given == source.has_subject, (
        f"has_subject is {source.has_subject}, but batches {'have' * given or 'lack'} them"
    )
    assert not given or len(batch.subjects or ()) == n, f"a batch has {n} ids and {len(batch.subjects or ())} subjects"


def _check(rows: _Rows) -> None:
    names = rows.source.class_names
    assert rows.source.encoding in (RAW, ENCODED, TEXT), (
        f"encoding is {rows.source.encoding!r}, not raw, encoded or text"
    )
    good = all(isinstance(name, str) and name.strip() for name in names) and len(set(names)) == len(names) > 1
    assert good, f"class_names are {names!r}, not at least two different texts"
    assert rows.ids, "there are no rows"
    for row, sample_id in enumerate(rows.ids):
        assert isinstance(sample_id, str) and sample_id.strip(), f"row {row}: the id is {sample_id!r}, not a text"
    seen: set[str] = set()
    for sample_id, label, split in zip(rows.ids, rows.labels, rows.splits, strict=True):
        assert sample_id not in seen, f"row {sample_id!r}: the id occurs twice"
        seen.add(sample_id)
        assert 0 <= label < len(names), f"row {sample_id!r}: the label is {label}, outside 0 to {len(names) - 1}"
        assert split in SPLITS, f"row {sample_id!r}: the split is {split!r}, not train or test"
    for split in SPLITS:
        assert split in rows.splits, f"no row is in {split}"
    trained = {label for label, split in zip(rows.labels, rows.splits, strict=True) if split == TRAIN}
    lacking = [names[i] for i in range(len(names)) if i not in trained]
    assert not lacking, f"classes without a training row: {', '.join(lacking)}"
    for sample_id, content in zip(rows.ids, rows.contents, strict=True):
        if rows.source.encoding == TEXT:
            assert content.strip(), f"row {sample_id!r}: the text is blank"
        elif rows.source.encoding == ENCODED:
            with promised(f"row {sample_id!r}"):
                decode(content, "the image")
    for subject in rows.subjects:
        assert subject is None or (isinstance(subject, str) and subject), (
            f"a subject is {subject!r}, not a text or None"
        )


def _written_twice(read: Reader, path: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as tmp, promised("the dataset cannot be written"):
        places = [Path(tmp) / "first", Path(tmp) / "second"]
        manifests = [write_dataset(place, read(path=path, test_fraction=0.25, seed=0)) for place in places]
        other = differing(*(contents(place) for place in places))
    assert not other, f"written again, the dataset has other bytes in {', '.join(other)}"
    return manifests[0]
