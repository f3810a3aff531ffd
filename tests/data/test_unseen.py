"""Unseen rows are drawn by their ids before training, are a part of their own, and cannot be forgotten."""

from pathlib import Path

import numpy as np
import pytest

from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.data.split import Split, split
from expunge.data.unseen import drawn, usable
from expunge.system.errors import DataError
from tests.data.sources import arrays


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, dict]:
    columns = arrays(600)
    np.savez(tmp_path / "a.npz", x=columns["images"], y=columns["labels"], ids=columns["ids"], split=columns["splits"])
    return tmp_path / "a.npz", columns


def dataset_of(file: Path, unseen: float, seed: int = 0) -> Dataset:
    prepare("npz", file.parent / "d", path=file, unseen=unseen, seed=seed)
    return Dataset(file.parent / "d")


def test_the_share_is_of_training_rows_and_no_row_depends_on_another(archive: tuple[Path, dict]) -> None:
    file, columns = archive
    splits = dataset_of(file, 0.3).splits()
    given = np.array(columns["splits"])
    np.testing.assert_array_equal(splits == "test", given == "test")
    # For 450 rows at 0.3 each, four standard deviations are 39.
    assert abs((splits == "unseen").sum() - 135) < 39
    expected = [s == "train" and drawn(i, 0) < 0.3 for i, s in zip(columns["ids"], given, strict=True)]
    np.testing.assert_array_equal(splits == "unseen", expected)
    half = slice(None, 300)
    part = {name: columns[name][half] for name in ("images", "labels", "ids", "splits")}
    np.savez(file, x=part["images"], y=part["labels"], ids=part["ids"], split=part["splits"])
    np.testing.assert_array_equal(dataset_of(file, 0.3).splits(), splits[half])
    assert (dataset_of(file, 0.3, seed=1).splits() != splits[half]).any()


def test_draws_are_even_between_0_and_1() -> None:
    found = np.sort([drawn(f"row {i}", 7) for i in range(2000)])
    # This is a Kolmogorov-Smirnov test of the uniform distribution; 0.0364 is its 99 % quantile for 2,000 draws.
    assert np.abs(found - (np.arange(2000) + 0.5) / 2000).max() < 0.0364


def test_unseen_rows_are_a_part_of_their_own(archive: tuple[Path, dict], tmp_path: Path) -> None:
    dataset = dataset_of(archive[0], 0.3)
    manifest = dataset.manifest
    assert manifest["rows_train"] + manifest["rows_unseen"] == 450 and manifest["rows_test"] == 150
    request = split(dataset, tmp_path / "s", selector="classes", classes=["1"], validation=0.2)
    drawn_split = Split(tmp_path / "s")
    np.testing.assert_array_equal(drawn_split.parts == "unseen", dataset.splits() == "unseen")
    assert request["forget_rows"] + request["retain_rows"] == manifest["rows_train"]
    # The class counts as forgotten as a whole although unseen rows of it remain.
    assert request["whole_classes"] == [1] and (dataset.labels()[drawn_split.rows("unseen")] == 1).any()
    assert not drawn_split.validation_mask[drawn_split.rows("unseen")].any()


def test_an_unseen_row_cannot_be_forgotten_and_a_share_above_a_half_is_refused(archive: tuple, tmp_path: Path) -> None:
    dataset = dataset_of(archive[0], 0.3)
    first = dataset.sample_ids()[int(np.flatnonzero(dataset.splits() == "unseen")[0])]
    (tmp_path / "ids.txt").write_text(f"{first}\n")
    with pytest.raises(DataError, match="1 values are test rows, or unseen ones, which no model was trained on"):
        split(dataset, tmp_path / "s", selector="ids", file=tmp_path / "ids.txt")
    with pytest.raises(DataError, match=r"split\.unseen is 0\.6"):
        prepare("npz", tmp_path / "e", path=archive[0], unseen=0.6)


def test_unseen_rows_of_whoever_is_forgotten_are_not_used() -> None:
    subjects = ["ann", "bob", None, "ann", "bob", None, "cid"]
    unseen, forget = np.array([3, 4, 5, 6]), np.array([0, 2])
    assert usable(unseen, forget, subjects).tolist() == [4, 5, 6]
    assert usable(unseen, forget, None).tolist() == unseen.tolist()
