"""Test the quality gates of datasets, splits and features: good ones pass, and each kind of fault stops them.

Neither messages nor Data Docs may contain row ids.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.data.dataset import Dataset
from expunge.data.split import split
from expunge.data.writer import write_dataset
from expunge.features.store import FeatureStore, write_shard
from expunge.quality import feature_frame, validate_dataset, validate_features, validate_split
from expunge.system.errors import ManifestError, QualityError
from expunge.system.files import staged_dir, write_json, write_manifest
from tests.data.sources import arrays, source_of


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    write_dataset(tmp_path / "dataset", source_of(arrays()), shard_rows=25)
    return Dataset(tmp_path / "dataset")


def rewrite(directory: Path, change) -> None:
    """Change the rows of the files with `change`, and write a manifest that matches the changed files."""
    manifest = json.loads((directory / "manifest.json").read_text())
    rows = {}
    for file in sorted(directory.glob("part-*.parquet")) or [directory / "assignment.parquet"]:
        table = change(pq.read_table(file))
        pq.write_table(table, file)
        rows[file.name] = table.num_rows
    retained = {k: v for k, v in manifest.items() if k not in ("schema", "producer", "files")}
    write_manifest(directory, manifest["producer"], rows=rows, **retained)


def with_column(name: str, values):
    """Return a change of a table that replaces the first values of the column `name`."""

    def change(table: pa.Table) -> pa.Table:
        column = table[name].to_pylist()
        column[: len(values)] = values[: len(column)]
        at = table.column_names.index(name)
        return table.set_column(at, table.schema.field(name), pa.array(column, table.schema.field(name).type))

    return change


def cats_only_for_testing(table: pa.Table) -> pa.Table:
    pairs = zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True)
    return with_column("label", [0 if (label, s) == (2, "train") else label for label, s in pairs])(table)


def failed(tmp_path: Path, call, *args) -> str:
    docs = tmp_path / "docs"
    with pytest.raises(QualityError, match="quality gate") as e:
        call(*args, docs)
    assert (docs / "index.html").is_file()
    return str(e.value)


def docs_text(docs: Path) -> str:
    return "".join(p.read_text() for p in docs.rglob("*.html")) + "".join(str(p) for p in docs.rglob("*"))


def test_a_good_dataset_passes_with_the_same_report_twice(tmp_path: Path, dataset: Dataset) -> None:
    report = validate_dataset(dataset.directory, tmp_path / "docs")
    assert report["success"] and report["suite"] == "dataset" and report["rows"] == 60
    assert all(c["success"] for c in report["checks"]) and len(report["checks"]) == 11
    assert json.dumps(report, sort_keys=True) == json.dumps(
        validate_dataset(dataset.directory, tmp_path / "docs"), sort_keys=True
    )
    assert len(list((tmp_path / "docs").rglob("validations/**/*.html"))) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_column("sample_id", ["row-001"]), "sample_id: column values to be unique (2 rows do not)"),
        (with_column("label", [3]), "label: column values to be between (1 rows do not)"),
        (with_column("split", ["dev"]), "split: column distinct values to be in set"),
        (with_column("label", [0] * 60), "train_label: column distinct values to equal set"),
        (cats_only_for_testing, "train_label: column distinct values to equal set"),
        (with_column("height", [0, 0]), "height: column values to be between (2 rows do not)"),
        (with_column("channels", [2]), "channels: column values to be in set"),
        (with_column("image", [b"", b"x"]), "content_bytes, pixels: column pair values to be equal (2 rows do not)"),
        (lambda table: table.slice(0, 9), "table: table row count to equal (expected {'value': 60}, found 27)"),
    ],
    ids=["ids", "labels", "splits", "classes", "test-only", "height", "channels", "image", "rows"],
)
def test_a_bad_dataset_is_stopped(tmp_path: Path, dataset: Dataset, change, words: str) -> None:
    def only_first(table: pa.Table) -> pa.Table:
        first = table["sample_id"][0].as_py() == "row-000"
        return change(table) if first or words.startswith(("table", "train_label")) else table

    rewrite(dataset.directory, only_first)
    message = failed(tmp_path, validate_dataset, dataset.directory)
    assert words in message
    assert "row-0" not in message + docs_text(tmp_path / "docs")


def test_a_good_split_passes(tmp_path: Path, dataset: Dataset) -> None:
    split(dataset, tmp_path / "split", selector="classes", classes=["bee"])
    report = validate_split(tmp_path / "split", dataset.directory, tmp_path / "docs")
    observed = {c["column"]: c["observed"] for c in report["checks"] if c["check"] == "column_sum_to_be_between"}
    assert observed == {"forget": 15, "retain": 30}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            with_column("part", ["forget"]),
            "forget: column sum to be between (expected {'min_value': 15.0, 'max_value': 15.0}, found 16)",
        ),
        (with_column("part", ["kept"]), "part: column values to be in set (1 rows do not)"),
        (
            with_column("part", ["retain", "forget", "retain", "retain"]),  # The fourth row is a test row.
            "fits_split: column values to be in set (1 rows do not)",
        ),
        (with_column("part", ["test_retain"]), "fits_split: column values to be in set (1 rows do not)"),
        (with_column("sample_id", ["row-001"]), "sample_id: column values to be unique (2 rows do not)"),
        (
            with_column("sample_id", ["row-001", "row-000"]),
            "matches_dataset: column values to be in set (2 rows do not)",
        ),
        (with_column("row", [1, 0]), "matches_dataset: column values to be in set (2 rows do not)"),
        (lambda table: table.slice(0, 50), "table row count to equal (expected {'value': 60}, found 50)"),
        (lambda table: pa.concat_tables([table, table]), "found 120"),
    ],
)
def test_a_bad_split_is_stopped(tmp_path: Path, dataset: Dataset, change, words: str) -> None:
    split(dataset, tmp_path / "split", selector="classes", classes=["bee"])
    rewrite(tmp_path / "split", change)
    message = failed(tmp_path, validate_split, tmp_path / "split", dataset.directory)
    assert words in message
    assert "row-0" not in message + docs_text(tmp_path / "docs")


def test_a_request_that_counts_otherwise_is_stopped(tmp_path: Path, dataset: Dataset) -> None:
    request = split(dataset, tmp_path / "split", selector="classes", classes=["bee"])
    write_json(tmp_path / "split" / "request.json", request | {"retain_rows": 31})
    rewrite(tmp_path / "split", lambda table: table)
    assert "retain: column sum" in failed(tmp_path, validate_split, tmp_path / "split", dataset.directory)


DIM = 6


def features(out: Path, dataset: Dataset, z: np.ndarray | None = None, rows: pa.Table | None = None) -> Path:
    rows = dataset.table(["sample_id", "label", "split"]) if rows is None else rows
    if z is None:
        z = np.random.default_rng(0).standard_normal((60, DIM)).astype(np.float32)
    with staged_dir(out) as tmp:
        cuts = [(0, 40), (40, len(z))]
        for i, (start, stop) in enumerate(cuts):
            write_shard(tmp / f"part-{i:05d}.parquet", rows.slice(start, stop - start), z[start:stop])
        counts = {f"part-{i:05d}.parquet": stop - start for i, (start, stop) in enumerate(cuts)}
        write_manifest(tmp, "extract", rows=counts, dim=DIM, model_digest="sha256:0")
    return out


def test_good_features_pass(tmp_path: Path, dataset: Dataset) -> None:
    store = features(tmp_path / "features", dataset)
    report = validate_features(store, dataset.directory, tmp_path / "docs")
    assert report["success"] and report["rows"] == 60
    assert "row-0" not in docs_text(tmp_path / "docs") + json.dumps(report)


def test_feature_frame_agrees_with_numpy(tmp_path: Path, dataset: Dataset) -> None:
    z = np.random.default_rng(1).standard_normal((60, DIM)).astype(np.float32)
    z[z < 0] = 0
    z[4, 2] = np.nan
    z[5, 0] = -np.inf
    frame = feature_frame(FeatureStore(features(tmp_path / "features", dataset, z)), dataset)
    good = np.setdiff1d(np.arange(60), [4, 5])
    np.testing.assert_allclose(frame["norm"][good], np.linalg.norm(z[good].astype(np.float64), axis=1))
    np.testing.assert_array_equal(frame["min"][good], z[good].min(axis=1))
    np.testing.assert_array_equal(frame["max"][good], z[good].max(axis=1))
    assert frame["norm"].isna().sum() == frame["min"].isna().sum() == 2
    np.testing.assert_array_equal(frame["n_zero"], (z == 0).sum(axis=1))
    np.testing.assert_array_equal(np.flatnonzero(frame["n_nonfinite"]), [4, 5])
    assert (frame["dim"] == DIM).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_stopped(tmp_path: Path, dataset: Dataset, value: float) -> None:
    z = np.ones((60, DIM), np.float32)
    z[7, 3] = value
    message = failed(tmp_path, validate_features, features(tmp_path / "f", dataset, z), dataset.directory)
    assert "n_nonfinite: column values to be in set (1 rows do not)" in message


def test_dead_features_are_stopped(tmp_path: Path, dataset: Dataset) -> None:
    z = np.zeros((60, DIM), np.float32)
    z[:30] = 1
    message = failed(tmp_path, validate_features, features(tmp_path / "f", dataset, z), dataset.directory)
    assert "n_zero: column values to be between (30 rows do not)" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            with_column("sample_id", ["row-001", "row-000"]),
            "matches_dataset: column values to be in set (2 rows do not)",
        ),
        (with_column("sample_id", ["row-001"]), "sample_id: column values to be unique"),
        (with_column("label", [2]), "label_agrees: column values to be in set (1 rows do not)"),
        (with_column("split", ["test"]), "split_agrees: column values to be in set (1 rows do not)"),
        (lambda table: table.slice(0, 55), "table row count to equal (expected {'value': 60}, found 55)"),
    ],
)
def test_features_of_other_rows_are_stopped(tmp_path: Path, dataset: Dataset, change, words: str) -> None:
    rows = change(dataset.table(["sample_id", "label", "split"]).combine_chunks())
    z = np.ones((rows.num_rows, DIM), np.float32)
    message = failed(tmp_path, validate_features, features(tmp_path / "f", dataset, z, rows), dataset.directory)
    assert words in message
    assert "row-0" not in message + docs_text(tmp_path / "docs")


def test_a_truncated_shard_stops_before_the_suite(tmp_path: Path, dataset: Dataset) -> None:
    store = features(tmp_path / "f", dataset)
    shard = store / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(ManifestError, match=r"part-00001\.parquet"):
        validate_features(store, dataset.directory, tmp_path / "docs")
