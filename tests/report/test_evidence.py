"""Test how rows are drawn for the report with a seed, and how their logits are read from Parquet files."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.report import evidence
from expunge.report.evidence import draw_rows, draw_view, drawn_words, groups_of, read_columns, read_logits
from expunge.system.errors import ManifestError

PARTS = np.array(["retain"] * 500 + ["forget"] * 30 + ["test_retain"] * 100 + ["test_forget"] * 20)


def test_small_sets_are_drawn_whole():
    np.testing.assert_array_equal(draw_rows(PARTS, 0), np.arange(650))


def test_large_parts_are_thinned_each_for_itself():
    rows = draw_rows(PARTS, 0, limit=50)
    assert {p: int((PARTS[rows] == p).sum()) for p in np.unique(PARTS)} == {
        "retain": 50,
        "forget": 30,
        "test_retain": 50,
        "test_forget": 20,
    }
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, draw_rows(PARTS, 0, limit=50))
    assert not np.array_equal(rows, draw_rows(PARTS, 1, limit=50))


def test_unseen_rows_are_test_rows_of_the_forgotten_classes():
    labels, parts = np.array([0, 1, 0, 1, 1]), np.array(["forget", "retain", "test_retain", "test_retain", "retain"])
    groups = {name: rows.tolist() for name, rows in groups_of(labels, parts).items()}
    assert groups == {"forgotten": [0], "unseen": [2], "retained": [1, 4], "retained test": [2, 3]}


def test_a_view_names_the_group_of_each_row():
    labels = np.where(np.isin(PARTS, ["forget", "test_forget"]), 1, 0)
    rows, groups = draw_view(labels, PARTS, 0)
    expected = {"retain": "retained", "forget": "forgotten", "test_forget": "unseen"}
    assert [expected[p] for p in PARTS[rows]] == groups.tolist()
    assert (groups == "retained").sum() == evidence.VIEW_ROWS["retained"]


def test_the_page_says_how_many_rows_were_drawn():
    assert drawn_words(650, 650, 0) == "All 650 rows are counted."
    assert "20,000 of each part" in drawn_words(60_000, 70_000, 3) and "seed 3" in drawn_words(60_000, 70_000, 3)


@pytest.fixture
def file(tmp_path):
    logits = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), 4)
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"part": ["retain"] * 300, "label": np.arange(300), "logits": column}), path)
    return path, logits


def test_logits_are_picked_across_batches(file, monkeypatch):
    path, logits = file
    monkeypatch.setattr(evidence, "BATCH", 64)
    rows = np.array([0, 63, 64, 200, 299])
    np.testing.assert_array_equal(read_logits(path, rows), logits[rows])
    assert read_columns(path, ["label"])["label"].tolist() == list(range(300))


def test_a_short_or_damaged_file_is_named(file):
    path, _ = file
    with pytest.raises(ManifestError, match=r"m\.parquet: holds 300 rows"):
        read_logits(path, np.array([300]))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ManifestError, match=r"m\.parquet: cannot be read"):
        read_logits(path, np.array([0]))
    with pytest.raises(ManifestError, match=r"m\.parquet: cannot be read"):
        read_columns(path, ["label"])
