"""Test `check_reader`: a good reader of each kind passes, and the error for a broken one names the broken promise."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from expunge.data.source import Batch, Source, split_names, stratified_test_rows
from expunge.testing import check_reader

N = 24
Change = Callable[[dict[str, Any], float, int], object]


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 4), value).save(out, "PNG")
    return out.getvalue()


CONTENT: dict[str, Any] = {
    "raw": np.arange(N * 16, dtype=np.uint8).reshape(N, 4, 4, 1),
    "encoded": [png(i) for i in range(N)],
    "text": [f"text number {i}" for i in range(N)],
}


def reader(encoding: str = "raw", change: Change = lambda *_: None) -> Callable[..., Source]:
    """Return a reader of two batches, in which `change(fields, test_fraction, seed)` makes a fault.

    The fields `names` and `more` are arguments of the source, the others are those of its batches.
    """

    def read(path: Path | None, test_fraction: float, seed: int) -> Source:
        labels = np.arange(N) % 3
        fields: dict[str, Any] = {
            "ids": [f"row-{i}" for i in range(N)],
            "labels": labels,
            "splits": split_names(stratified_test_rows(labels, test_fraction, seed)),
            "content": CONTENT[encoding].copy(),
            "subjects": None,
            "names": ("a", "b", "c"),
            "more": {},
        }
        change(fields, test_fraction, seed)
        names, more = fields.pop("names"), fields.pop("more")

        def batches():
            for part in (slice(0, N // 2), slice(N // 2, N)):
                yield Batch(*(None if value is None else value[part] for value in fields.values()))

        return Source("mine", names, encoding, batches(), **more)

    return read


@pytest.mark.parametrize("encoding", CONTENT)
def test_a_good_reader_of_each_kind_passes(encoding):
    assert check_reader(reader(encoding))["rows_train"] == 18


def test_a_reader_with_people_passes():
    def people(f: dict[str, Any], *_: Any) -> None:
        f |= {"subjects": [f"person {i % 4}" if i else None for i in range(N)], "more": {"has_subject": True}}

    assert check_reader(reader(change=people))["rows_test"] == 6


def put(field: str, index: int, value: Any) -> Change:
    return lambda f, *_: f[field].__setitem__(index, value)


def give(**fields: Any) -> Change:
    return lambda f, *_: f.update(fields)


def shuffled(f: dict[str, Any], _fraction: float, seed: int) -> None:
    f["ids"] = [f"row-{i}" for i in np.random.default_rng(seed).permutation(N)]


def renumbered(f: dict[str, Any], fraction: float, seed: int) -> None:
    """Make ids that contain the name of the split, so that they are stable only for one split."""
    f["ids"] = [f"{s}-{i}" for i, s in enumerate(f["splits"])]


def noisy(f: dict[str, Any], *_: Any) -> None:
    f["content"] = f["content"] ^ np.random.default_rng().integers(0, 2, f["content"].shape, np.uint8)


def global_split(f: dict[str, Any], *_: Any) -> None:
    f["splits"] = [random.choice(["train", "test"]) for _ in range(N)]


def global_seed(f: dict[str, Any], _fraction: float, seed: int) -> None:
    np.random.seed(seed)


RAW_BROKEN = {
    "an id twice": (put("ids", 5, "row-3"), "row 'row-3': the id occurs twice"),
    "an id that is no text": (put("ids", 5, 7), "row 5: the id is 7, not a text"),
    "a blank id": (put("ids", 5, " "), "row 5: the id is ' '"),
    "a label out of range": (put("labels", 4, 3), "row 'row-4': the label is 3, outside 0 to 2"),
    "a label below 0": (put("labels", 4, -1), "row 'row-4': the label is -1"),
    "labels that are floats": (give(labels=np.zeros(N)), "labels are float64 (12,), not int (n,)"),
    "labels in two dimensions": (give(labels=np.zeros((N, 1), int)), "labels are int64 (12, 1)"),
    "an unknown split": (put("splits", 4, "val"), "row 'row-4': the split is 'val'"),
    "no test rows": (give(splits=["train"] * N), "no row is in test"),
    "a class only in test": (
        lambda f, *_: f.update(splits=["test" if i % 3 == 2 else s for i, s in enumerate(f["splits"])]),
        "classes without a training row: c",
    ),
    "a class name twice": (give(names=("a", "b", "b")), "class_names are ('a', 'b', 'b')"),
    "float images": (give(content=np.zeros((N, 4, 4, 1))), "raw images are float64 (12, 4, 4, 1)"),
    "images without channels": (give(content=np.zeros((N, 4, 4), np.uint8)), "raw images are uint8 (12, 4, 4)"),
    "two channels": (give(content=np.zeros((N, 4, 4, 2), np.uint8)), "raw images are uint8 (12, 4, 4, 2)"),
    "fewer labels": (give(labels=np.arange(15) % 3), "a batch has 12 ids and 3 labels"),
    "people that nobody was told of": (give(subjects=["p"] * N), "has_subject is False, but batches have them"),
    "people that lack": (give(more={"has_subject": True}), "has_subject is True, but batches lack them"),
    "a person that is no text": (give(subjects=[1] * N, more={"has_subject": True}), "a subject is 1"),
    "other ids for another seed": (shuffled, "ids change with test_fraction or seed: only the split may"),
    "ids that name the split": (renumbered, "ids change with test_fraction or seed"),
    "noise": (noisy, "contents differ when the source is read again"),
    "a split from a global generator": (global_split, "reading uses a global generator"),
    "a global generator that is seeded": (global_seed, "reading uses a global generator"),
}


@pytest.mark.parametrize("name", RAW_BROKEN)
def test_a_broken_reader_of_images_gets_the_promise_that_it_broke(name):
    change, why = RAW_BROKEN[name]
    with pytest.raises(AssertionError) as caught:
        check_reader(reader(change=change))
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("encoding", "change", "why"),
    [
        ("encoded", put("content", 3, b"no picture"), "row 'row-3': DataError: the image: not a readable image"),
        ("encoded", put("content", 3, "text"), "encoding 'encoded' needs a list of bytes"),
        ("text", put("content", 3, " \n"), "row 'row-3': the text is blank"),
        ("text", put("content", 3, b"bytes"), "encoding 'text' needs a list of str"),
    ],
)
def test_a_broken_reader_of_files_or_texts_gets_the_promise_that_it_broke(encoding, change, why):
    with pytest.raises(AssertionError) as caught:
        check_reader(reader(encoding, change))
    assert why in str(caught.value)


def test_an_empty_or_failing_reader_and_what_is_no_source_are_reported():
    def fails(**_: Any) -> Source:
        raise KeyError("no column")

    for read, why in (
        (lambda **_: [], "returned a list, not a Source"),
        (lambda **_: Source("mine", ("a", "b"), "raw", iter(())), "there are no rows"),
        (lambda **_: Source("mine", ("a", "b"), "pixels", iter(())), "encoding is 'pixels'"),
        (lambda path: None, "the reader fails: TypeError"),
        (fails, "the reader fails: KeyError: 'no column'"),
    ):
        with pytest.raises(AssertionError) as caught:
            check_reader(read)
        assert why in str(caught.value)


def test_a_path_is_handed_on(tmp_path):
    seen = []
    good = reader()

    def read(path: Path | None, test_fraction: float, seed: int) -> Source:
        seen.append(path)
        return good(path, test_fraction, seed)

    check_reader(read, tmp_path)
    assert set(seen) == {tmp_path}
