"""Texts are read unchanged from CSV, TSV and Parquet, and files that are no dataset of texts are refused."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.data.schema import TEXT
from expunge.system.errors import DataError
from tests.data.sources import prepared, refused

TEXTS = ["Grüße aus Köln", 'he said "no", twice', "two\nlines", "a\ttab", "good film", "bad film", "meh", "ok"]
LABELS = ["chat", "film"] * 4


def rows() -> dict:
    return {
        "text": TEXTS,
        "label": LABELS,
        "sample_id": [f"t{i}" for i in range(8)],
        "subject": ["ann", None] * 4,
        "split": ["train"] * 6 + ["test"] * 2,
    }


def write(path: Path, data: dict, delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table(data), path)
        return path
    quote = (lambda v: '"' + v.replace('"', '""') + '"') if delimiter == "," else (lambda v: v)
    lines = [
        delimiter.join(data),
        *(delimiter.join(quote(v or "") for v in r) for r in zip(*data.values(), strict=True)),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_texts_arrive_as_they_are(suffix: str, tmp_path: Path) -> None:
    dataset = prepared(tmp_path, "text", path=write(tmp_path / f"in{suffix}", rows()))
    assert dataset.inputs() == TEXTS
    assert dataset.encoding == TEXT and dataset.image_shape is None and dataset.class_names == ["chat", "film"]
    assert dataset.columns == ["sample_id", "subject", "label", "split", "text", "digest"]
    table = dataset.table(dataset.columns)
    assert table["subject"].to_pylist() == ["ann", None] * 4 and table["split"].to_pylist() == rows()["split"]
    assert table["digest"].to_pylist() == [blake2b(t.encode(), digest_size=16).digest() for t in TEXTS]
    assert dataset.inputs(np.array([5, 0])) == [TEXTS[5], TEXTS[0]]
    assert [(first, batch) for first, batch in dataset.iter_batches(3)] == [
        (0, TEXTS[:3]),
        (3, TEXTS[3:6]),
        (6, TEXTS[6:]),
    ]
    assert dataset.content_bytes().tolist() == [len(t.encode()) for t in TEXTS]
    with pytest.raises(DataError, match="holds texts"):
        dataset.images()


def test_tsv_has_no_quotes_and_folders_are_read_in_order(tmp_path: Path) -> None:
    text = 'a "quoted start, as corpora have it'
    one = {"text": [text, "b", "c"], "label": ["1", "0", "1"]}
    write(tmp_path / "in" / "1.tsv", one, "\t")
    write(tmp_path / "in" / "2.tsv", {"text": ["d", "e", "f"], "label": ["0", "1", "0"]}, "\t")
    dataset = prepared(tmp_path, "text", path=tmp_path / "in", test_fraction=0.34, seed=1)
    assert dataset.inputs() == [text, "b", "c", "d", "e", "f"]
    assert dataset.labels().tolist() == [1, 0, 1, 0, 1, 0] and dataset.class_names == ["0", "1"]
    assert dataset.sample_ids() == list("012345")
    assert Counter(dataset.splits().tolist()) == {"train": 4, "test": 2}


def test_exact_duplicates_are_counted(tmp_path: Path) -> None:
    data = {"text": ["same", "same ", "same", "other", "x", "y"], "label": ["a", "a", "b", "b", "a", "b"]}
    dataset = prepared(tmp_path, "text", path=write(tmp_path / "in.csv", data), test_fraction=0.4)
    assert dataset.manifest["duplicates"]["rows"] == 2
    assert dataset.manifest["duplicates"]["groups_across_labels"] == 1


def test_what_cannot_be_a_dataset_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    for change, message in (
        ({"text": [*TEXTS[:-1], "  \n"]}, "the text of row 't7' is blank"),
        ({"text": [*TEXTS[:2], None, *TEXTS[3:]]}, r"in\.csv: row 2 has no text"),
        ({"label": [*LABELS[:-1], None]}, "row 7 has no label"),
        ({"split": ["train"] * 7 + ["dev"]}, "split 'dev' is neither"),
        ({"sample_id": ["t0"] * 8}, "8 sample ids|sample ids occur more than once"),
    ):
        refused(tmp_path, message, "text", write(file, {**rows(), **change}))
    refused(
        tmp_path,
        "no column 'text'; it has label, split",
        "text",
        write(file, {k: rows()[k] for k in ("label", "split")}),
    )
    file.write_bytes(b"text,label\nabc\xff\xfe,1\nb,0\n")
    refused(tmp_path, r"in\.csv: damaged.*UTF8", "text", file)
    file.write_text("text,label\na,1\nb,0,extra\n")
    refused(tmp_path, r"in\.csv: .*Expected 2 columns, got 3", "text", file)
    file.write_text("")
    refused(tmp_path, r"in\.csv: damaged.*Empty CSV", "text", file)
    refused(
        tmp_path,
        r"in\.json: data\.source text reads only \.parquet or \.csv or \.tsv",
        "text",
        write(tmp_path / "in.json", rows()),
    )
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "contains no .* files", "text", tmp_path / "empty")
