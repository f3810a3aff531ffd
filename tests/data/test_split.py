"""Each selector forgets the training rows that it describes, and bad requests are refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.data.dataset import Dataset
from expunge.data.selectors import class_indices
from expunge.data.split import Split, request_digest, split
from expunge.data.writer import write_dataset
from expunge.system.errors import DataError, ManifestError
from tests.data.sources import arrays, source_of


def forgotten(out: Path) -> list[str]:
    table = pq.read_table(out / "assignment.parquet").to_pydict()
    return [i for i, part in zip(table["sample_id"], table["part"], strict=True) if part == "forget"]


def train_ids(data: dict, keep) -> list[str]:
    return [data["ids"][i] for i in range(60) if data["splits"][i] == "train" and keep(i)]


@pytest.mark.parametrize("classes", [["bee"], [1]])
def test_a_class_is_forgotten_as_a_whole(tmp_path: Path, dataset: Dataset, data: dict, classes: list) -> None:
    request = split(dataset, tmp_path / "s", selector="classes", classes=classes)
    assert request["forget_rows"] == 15 and request["retain_rows"] == 30
    assert request["classes"] == request["whole_classes"] == [1]
    table = pq.read_table(tmp_path / "s" / "assignment.parquet")
    assert table.schema.types == [pa.string(), pa.int64(), pa.string()]
    assert table["sample_id"].to_pylist() == data["ids"]
    assert table["row"].to_pylist() == list(range(60))
    names = {
        (True, True): "forget",
        (True, False): "retain",
        (False, True): "test_forget",
        (False, False): "test_retain",
    }
    expected = [names[data["splits"][i] == "train", data["labels"][i] == 1] for i in range(60)]
    assert table["part"].to_pylist() == expected
    read = Split(tmp_path / "s")
    assert read.request == request == json.loads((tmp_path / "s" / "request.json").read_text())
    assert read.parts.tolist() == expected
    assert read.rows("test_forget").tolist() == [i for i, p in enumerate(expected) if p == "test_forget"]
    assert read.manifest["parts"] == {p: expected.count(p) for p in names.values()} | {"unseen": 0}


def test_class_names_match_in_any_case_where_they_are_one_class() -> None:
    assert class_indices(["Bag", "Coat"], ["bag", "COAT"]) == [0, 1]
    assert class_indices(["Bag", "bag"], ["bag", "Bag"]) == [1, 0]
    with pytest.raises(DataError, match="unknown class 'BAG'"):
        class_indices(["Bag", "bag"], ["BAG"])
    with pytest.raises(DataError, match="listed twice"):
        class_indices(["Bag", "Coat"], ["bag", "Bag"])


def test_a_class_without_training_rows_is_not_forgotten_as_a_whole(tmp_path: Path) -> None:
    data = arrays()
    data["labels"][3] = 3  # This is a test row.
    write_dataset(tmp_path / "d", source_of(data, names=("ant", "bee", "cat", "dog")))
    request = split(Dataset(tmp_path / "d"), tmp_path / "s", selector="classes", classes=["ant"])
    assert request["whole_classes"] == [0]
    assert Split(tmp_path / "s").parts[3] == "test_retain"


def test_random_rows_are_drawn_by_fraction_and_seed(tmp_path: Path, dataset: Dataset) -> None:
    def drawn(**options) -> list[str]:
        split(dataset, tmp_path / "s", selector="random", **options)
        return forgotten(tmp_path / "s")

    first = drawn(fraction=0.2, seed=3)
    assert len(set(first)) == 9
    assert drawn(fraction=0.2, seed=3) == first
    assert drawn(fraction=0.2, seed=4) != first
    assert len(drawn(fraction=0.001)) == 1
    request = json.loads((tmp_path / "s" / "request.json").read_text())
    assert request["whole_classes"] == []
    assert set(Split(tmp_path / "s").parts) == {"retain", "forget", "test_retain"}


def write_values(file: Path, column: str, values: list[str]) -> Path:
    if file.suffix == ".parquet":
        pq.write_table(pa.table({"other": list(range(len(values))), column: values}), file)
    elif file.suffix == ".csv":
        file.write_text("\ufeffother," + column + "\n" + "".join(f'1,"{v}"\n' for v in values))
    else:
        file.write_text("\n".join(values) + "\n\n")
    return file


@pytest.mark.parametrize("kind", [".txt", ".csv", ".parquet"])
def test_ids_and_subjects_are_read_from_files(tmp_path: Path, dataset: Dataset, data: dict, kind: str) -> None:
    ids = ["row-040", "row-002", "row-005"]
    split(dataset, tmp_path / "s", selector="ids", file=write_values(tmp_path / f"ids{kind}", "sample_id", ids))
    assert forgotten(tmp_path / "s") == sorted(ids)
    people = ["person-4", "person-1"]
    split(dataset, tmp_path / "p", selector="subjects", file=write_values(tmp_path / f"p{kind}", "subject", people))
    assert forgotten(tmp_path / "p") == train_ids(data, lambda i: data["subjects"][i] in people)


def test_a_csv_of_one_column_needs_no_header(tmp_path: Path, dataset: Dataset) -> None:
    (tmp_path / "ids.csv").write_text("row-002\nrow-004\n")
    split(dataset, tmp_path / "s", selector="ids", file=tmp_path / "ids.csv")
    assert forgotten(tmp_path / "s") == ["row-002", "row-004"]


def test_a_filter_forgets_the_training_rows_that_match(tmp_path: Path, dataset: Dataset, data: dict) -> None:
    text = 'class == "cat" and subject is not null and height == 5'
    split(dataset, tmp_path / "s", selector="filter", filter=text)
    chosen = train_ids(data, lambda i: data["labels"][i] == 2 and data["subjects"][i] is not None)
    assert forgotten(tmp_path / "s") == chosen


def test_equal_requests_have_equal_bytes_and_digests(tmp_path: Path, dataset: Dataset) -> None:
    by_name = split(dataset, tmp_path / "a", selector="classes", classes=["cat"])
    by_filter = split(dataset, tmp_path / "b", selector="filter", filter="label == 2")
    assert by_name["digest"] == by_filter["digest"]
    again = split(dataset, tmp_path / "c", selector="classes", classes=["cat"])
    assert again == by_name
    for name in ("assignment.parquet", "request.json", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    assert split(dataset, tmp_path / "d", selector="classes", classes=["bee"])["digest"] != by_name["digest"]


def test_the_digest_depends_on_the_dataset_and_not_on_the_order_of_ids() -> None:
    assert request_digest(["b", "a"], "k") == request_digest(["a", "b"], "k")
    assert request_digest(["a", "b"], "k") != request_digest(["a", "b"], "other")
    assert request_digest(["a", "b"], "k") != request_digest(['a","b'], "k")


def bad_request(tmp_path: Path, dataset: Dataset, message: str, **request) -> None:
    with pytest.raises(DataError, match=message):
        split(dataset, tmp_path / "s", **request)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            {"selector": "classes", "classes": ["dog"]},
            r"unknown class 'dog'; this dataset has the classes 0 ant, 1 bee, 2 cat",
        ),
        ({"selector": "classes", "classes": [3]}, "unknown class 3"),
        ({"selector": "classes", "classes": [-1]}, "unknown class -1"),
        ({"selector": "classes", "classes": [True]}, "unknown class True"),
        ({"selector": "classes", "classes": []}, "at least one class"),
        ({"selector": "classes", "classes": ["ant", 0]}, "'ant' is listed twice"),
        ({"selector": "classes", "classes": [0, 1, 2]}, "forgets every training row"),
        ({"selector": "random", "fraction": 0.0}, "fraction is 0.0"),
        ({"selector": "random", "fraction": 0.999}, "forgets every training row"),
        ({"selector": "filter", "filter": "label == 77"}, "forgets no training row"),
        ({"selector": "filter", "filter": "split == 'test'"}, "selects 15 test rows and no training row"),
        ({"selector": "filter", "filter": "label > -5"}, "forgets every training row"),
        ({"selector": "filter"}, "needs an expression"),
        ({"selector": "ids"}, "needs a file"),
        ({"selector": "everything"}, "unknown selector 'everything'"),
        ({"selector": "classes", "classes": [0], "duplicates": "ignore"}, "duplicates is 'ignore'"),
        ({"selector": "classes", "classes": [0], "near_duplicates": "never"}, "near_duplicates is 'never'"),
        ({"selector": "memorised"}, "needs the features of the model"),
        ({"selector": "memorised", "scores": lambda: np.zeros(60), "fraction": 1.0}, "fraction is 1.0"),
        ({"selector": "memorised", "scores": lambda: np.full(60, np.nan)}, "have no score"),
    ],
)
def test_bad_requests_are_refused(tmp_path: Path, dataset: Dataset, request_: dict, message: str) -> None:
    bad_request(tmp_path, dataset, message, **request_)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["row-001", "x", "y", "z", "w"], r"ids\.txt: 4 values are not in the dataset, first 'x', 'y', 'z'"),
        (["row-001", "row-002", "row-001"], r"ids\.txt: 1 values are listed twice or more, first 'row-001'"),
        (["row-001", "row-003"], r"ids\.txt: 1 values are test rows, .* first 'row-003'"),
        ([], "the list is empty"),
    ],
)
def test_bad_ids_are_refused(tmp_path: Path, dataset: Dataset, ids: list[str], message: str) -> None:
    bad_request(tmp_path, dataset, message, selector="ids", file=write_values(tmp_path / "ids.txt", "sample_id", ids))


def test_bad_files_are_refused(tmp_path: Path, dataset: Dataset) -> None:
    (tmp_path / "a.json").write_text("[]")
    bad_request(tmp_path, dataset, r"a\.json: unknown file type; use \.txt", selector="ids", file=tmp_path / "a.json")
    bad_request(tmp_path, dataset, r"no\.txt: no such file", selector="ids", file=tmp_path / "no.txt")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else")
    bad_request(tmp_path, dataset, r"a\.parquet: cannot be read", selector="ids", file=tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("id,name\nrow-001,x\n")
    bad_request(
        tmp_path,
        dataset,
        r"a\.csv: no column 'sample_id'; its columns are id, name",
        selector="ids",
        file=tmp_path / "a.csv",
    )
    (tmp_path / "b.csv").write_text("name,sample_id\nx,row-001\ny\n")
    bad_request(tmp_path, dataset, r"b\.csv: row 3 has no sample_id", selector="ids", file=tmp_path / "b.csv")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    bad_request(tmp_path, dataset, r"a\.txt: cannot be read", selector="ids", file=tmp_path / "a.txt")
    people = write_values(tmp_path / "p.txt", "subject", ["person-1", "nobody"])
    bad_request(
        tmp_path, dataset, "1 values are not subjects of any row, first 'nobody'", selector="subjects", file=people
    )


def test_subjects_without_a_subject_column_are_refused(tmp_path: Path) -> None:
    source = source_of(arrays() | {"subjects": None})
    write_dataset(tmp_path / "d", type(source)(source.name, source.class_names, source.encoding, source.batches))
    people = write_values(tmp_path / "p.txt", "subject", ["person-1"])
    bad_request(tmp_path, Dataset(tmp_path / "d"), "no subject column", selector="subjects", file=people)


@pytest.fixture
def twins(tmp_path: Path) -> Dataset:
    """Return a dataset in which training rows 0 and 12 (ant) equal row 4 (bee) and test row 3 (ant)."""
    data = arrays()
    for row in (3, 4, 12):
        data["images"][row] = data["images"][0]
    write_dataset(tmp_path / "twins", source_of(data))
    return Dataset(tmp_path / "twins")


def test_duplicates_left_in_retain_are_counted(
    tmp_path: Path, twins: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        request = split(twins, tmp_path / "s", selector="classes", classes=["ant"])
    assert request["duplicates_left_in_retain"] == 2
    assert "2 forgotten rows have an exact duplicate" in caplog.text
    alone = write_values(tmp_path / "ids.txt", "sample_id", ["row-001"])
    assert split(twins, tmp_path / "n", selector="ids", file=alone)["duplicates_left_in_retain"] == 0


def test_duplicates_can_be_included_or_refused(tmp_path: Path, twins: Dataset) -> None:
    request = split(twins, tmp_path / "s", selector="classes", classes=["ant"], duplicates="include")
    assert (request["duplicates_left_in_retain"], request["duplicates_included"]) == (0, 1)
    assert request["forget_rows"] == 16
    assert "row-004" in set(forgotten(tmp_path / "s"))
    assert request["classes"] == [0, 1] and request["whole_classes"] == [0]
    bad_request(tmp_path / "r", twins, "2 forgotten rows", selector="classes", classes=["ant"], duplicates="refuse")


class Chain:
    """Neighbours in which row 1 is near row 0, row 2 is near row 1, and so on up to row 6.

    Test rows are near too, but must not count.
    """

    def distance(self) -> float:
        return 0.5

    def near(self, asked: np.ndarray, others: np.ndarray, distance: float) -> tuple[np.ndarray, np.ndarray]:
        assert distance == 0.5
        near, has = np.zeros(60, bool), np.zeros(60, bool)
        for row in range(6):
            if asked[row] and others[row + 1]:
                near[row + 1] = has[row] = True
        return near, has


@pytest.mark.parametrize(("policy", "rows"), [("warn", ["row-004"]), ("include", ["row-004", "row-005", "row-006"])])
def test_near_duplicates_are_reported_or_included_with_their_own_near_duplicates(
    tmp_path: Path, dataset: Dataset, caplog: pytest.LogCaptureFixture, policy: str, rows: list[str]
) -> None:
    one = write_values(tmp_path / "ids.txt", "sample_id", ["row-004"])
    with caplog.at_level(logging.WARNING):
        request = split(dataset, tmp_path / "s", selector="ids", file=one, near_duplicates=policy, neighbours=Chain())
    assert forgotten(tmp_path / "s") == rows
    expected = {"distance": 0.5, "left_in_retain": int(policy == "warn"), "included": len(rows) - 1}
    assert request["near_duplicates"] == expected
    assert ("a near-duplicate among the retained rows" in caplog.text) == (policy == "warn")


def test_near_duplicates_can_be_refused_or_ignored(tmp_path: Path, dataset: Dataset) -> None:
    one = write_values(tmp_path / "ids.txt", "sample_id", ["row-004"])
    asked = {"selector": "ids", "file": one, "neighbours": Chain()}
    bad_request(tmp_path, dataset, "1 forgotten rows have a near-duplicate", near_duplicates="refuse", **asked)
    request = split(dataset, tmp_path / "s", near_duplicates="ignore", **asked)
    assert request["near_duplicates"] == {"distance": None, "left_in_retain": 0, "included": 0}


def test_an_exact_copy_is_no_near_duplicate_as_well(tmp_path: Path, twins: Dataset) -> None:
    class Same(Chain):
        def near(self, asked: np.ndarray, others: np.ndarray, distance: float) -> tuple[np.ndarray, np.ndarray]:
            assert not others[4]
            return np.zeros(60, bool), np.zeros(60, bool)

    request = split(
        twins, tmp_path / "s", selector="classes", classes=["ant"], near_duplicates="warn", neighbours=Same()
    )
    assert request["duplicates_left_in_retain"] == 2 and request["near_duplicates"]["left_in_retain"] == 0


def test_memorised_takes_the_training_rows_with_the_highest_scores(
    tmp_path: Path, dataset: Dataset, data: dict
) -> None:
    scores = np.where(np.array(data["splits"]) == "train", np.arange(60.0), np.nan)
    scores[5] = 99.0
    request = split(dataset, tmp_path / "s", selector="memorised", fraction=0.05, scores=lambda: scores)
    last = train_ids(data, lambda i: i != 5)[-1]
    assert request["forget_rows"] == 2 and set(forgotten(tmp_path / "s")) == {"row-005", last}


def test_a_changed_split_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    split(dataset, tmp_path / "s", selector="classes", classes=[0])
    request = tmp_path / "s" / "request.json"
    request.write_text(request.read_text().replace("15", "16"))
    with pytest.raises(ManifestError, match=r"request\.json: differs"):
        Split(tmp_path / "s")
    with pytest.raises(ManifestError, match="not a split"):
        Split(dataset.directory)


def test_unknown_part_is_a_programming_error(tmp_path: Path, dataset: Dataset) -> None:
    split(dataset, tmp_path / "s", selector="classes", classes=[0])
    with pytest.raises(ValueError, match="unknown part"):
        Split(tmp_path / "s").rows("kept")
    assert np.concatenate([Split(tmp_path / "s").rows(p) for p in ("retain", "forget")]).size == 45


def test_a_filter_that_names_a_row_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    some = dataset.sample_ids()[0]
    with pytest.raises(DataError, match="names rows or people"):
        split(dataset, tmp_path / "split", selector="filter", filter=f'sample_id == "{some}"')
    assert not (tmp_path / "split").exists()
