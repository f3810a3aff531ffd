"""A list of corrected labels becomes a request whose rows stay in training with their new labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from expunge.data.corrections import Corrections, class_index
from expunge.data.dataset import Dataset
from expunge.data.split import Split, split
from expunge.data.writer import write_dataset
from expunge.system.errors import DataError
from tests.data.sources import arrays, source_of


def listed(directory: Path, *lines: str, header: str = "sample_id,label") -> Path:
    file = directory / "corrections.csv"
    file.write_text("\n".join([header, *lines]) + "\n")
    return file


def correct(dataset: Dataset, file: Path, **options) -> dict:
    return split(dataset, file.parent / "split", selector="correct", file=file, **options)


def test_corrected_rows_stay_with_another_label(tmp_path: Path, dataset: Dataset, data: dict) -> None:
    # Rows 0, 1 and 5 have the labels 0, 1 and 2. New labels are given as a name, an index, and a name with spaces.
    request = correct(dataset, listed(tmp_path, "row-005,ant", "row-000,1", "row-001, cat "))
    assert request["forget_rows"] == 3 and request["retain_rows"] == 42
    assert request["classes"] == [0, 1, 2] and request["whole_classes"] == []
    read = Split(tmp_path / "split")
    assert read.rows("forget").tolist() == [0, 1, 5]
    assert read.training_rows.tolist() == [i for i in range(60) if data["splits"][i] == "train"]
    expected = data["labels"].copy()
    expected[[0, 1, 5]] = 1, 2, 0
    assert np.array_equal(read.labels(dataset.labels()), expected)
    assert np.array_equal(dataset.labels(), data["labels"])  # The dataset itself is unchanged.


def test_a_class_that_loses_all_its_rows_is_not_forgotten(tmp_path: Path, dataset: Dataset, data: dict) -> None:
    rows = [i for i in range(60) if data["labels"][i] == 1 and data["splits"][i] == "train"]
    request = correct(dataset, listed(tmp_path, *(f"{data['ids'][i]},ant" for i in rows)))
    assert request["whole_classes"] == []
    assert len(Split(tmp_path / "split").rows("test_forget")) == 0


def test_labels_and_ids_stand_in_the_assignment_alone(tmp_path: Path, dataset: Dataset) -> None:
    request = correct(dataset, listed(tmp_path, "row-005,ant", "row-000,bee"))
    table = pq.read_table(tmp_path / "split" / "assignment.parquet")
    assert table["old_label"].to_pylist()[:7] == [0, None, None, None, None, 2, None]
    assert table["new_label"].to_pylist()[:7] == [1, None, None, None, None, 0, None]
    assert "row-0" not in json.dumps(request) + (tmp_path / "split" / "manifest.json").read_text()


def test_the_digest_names_rows_and_labels(tmp_path: Path, dataset: Dataset) -> None:
    first = correct(dataset, listed(tmp_path, "row-005,ant", "row-000,bee"))["digest"]
    assert correct(dataset, listed(tmp_path, "row-000,1", "row-005,0"))["digest"] == first
    assert correct(dataset, listed(tmp_path, "row-000,cat", "row-005,ant"))["digest"] != first
    forgotten = split(dataset, tmp_path / "other", selector="ids", file=_ids(tmp_path, "row-000", "row-005"))
    assert forgotten["digest"] != first
    assert Split(tmp_path / "other").corrections is None


def _ids(directory: Path, *ids: str) -> Path:
    file = directory / "ids.txt"
    file.write_text("\n".join(ids))
    return file


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["row-000,bee", "nobody,ant"], r"1 values are not in the dataset, first 'nobody'"),
        (["row-003,bee"], r"test rows, which no model was trained on, first 'row-003'"),
        (
            ["row-000,dog"],
            r"corrections.csv: 'dog' is not a class of this dataset; use one of its classes: ant, bee, cat",
        ),
        (["row-000,3"], r"'3' is not a class"),
        (["row-000,-1"], r"'-1' is not a class"),
        (["row-000,"], r"'' is not a class"),
        (["row-001,cat", "row-000,ant"], r"nothing to correct, first 'row-000'"),
        (["row-000,bee", "row-000,cat"], r"listed twice or more, first 'row-000'"),
        ([], r"lists no row to correct"),
        (["row-000"], r"row 2 has no label"),
    ],
)
def test_bad_lists_of_corrections_are_refused(tmp_path: Path, dataset: Dataset, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        correct(dataset, listed(tmp_path, *lines))
    assert not (tmp_path / "split").exists()


def test_bad_files(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(DataError, match="no column 'label'; write the header sample_id,label"):
        correct(dataset, listed(tmp_path, "row-000,bee", header="sample_id,class"))
    with pytest.raises(DataError, match=r"no such file \(split.file"):
        correct(dataset, tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"expected a \.csv"):
        correct(dataset, _ids(tmp_path, "row-000"))
    with pytest.raises(DataError, match="needs a file"):
        split(dataset, tmp_path / "split", selector="correct")


def test_a_class_cannot_be_made_of_corrected_rows(tmp_path: Path) -> None:
    data = arrays()
    write_dataset(tmp_path / "dataset", source_of(data, names=("ant", "bee", "cat", "dog")))
    with pytest.raises(DataError, match="class 'dog' would have only corrected training rows"):
        correct(Dataset(tmp_path / "dataset"), listed(tmp_path, "row-000,dog"))


@pytest.mark.parametrize("policy", ["include", "refuse"])
def test_copies_have_no_new_label(tmp_path: Path, dataset: Dataset, policy: str) -> None:
    with pytest.raises(DataError, match=f"split.duplicates: {policy} cannot be used with corrections; list the copies"):
        correct(dataset, listed(tmp_path, "row-000,bee"), duplicates=policy)


def test_a_label_is_a_class_name_before_it_is_an_index() -> None:
    assert class_index(["1", "0", "two"]) == {"1": 0, "0": 1, "2": 2, "two": 2}


def test_corrections_of_other_labels_are_refused(dataset: Dataset) -> None:
    corrections = Corrections(np.array([0, 70]), np.array([0, 1], np.int32), np.array([1, 0], np.int32))
    with pytest.raises(DataError, match="differ from those that the corrections were written for"):
        corrections.apply(dataset.labels())
    with pytest.raises(DataError, match="differ from those that the corrections were written for"):
        Corrections(np.array([0]), np.array([2], np.int32), np.array([1], np.int32)).apply(dataset.labels())
