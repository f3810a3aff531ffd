"""Labels that were corrected for good stay corrected, whatever the source or an old commit says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from expunge.data.corrected import UNCHANGED, CorrectedLabels
from expunge.data.dataset import Dataset
from expunge.data.tombstones import VARIABLE, home
from expunge.data.writer import write_dataset
from expunge.system.errors import DataError
from tests.data.sources import source_of

ROWS = ["row-000", "row-005"]


def keep(root: Path, dataset: Dataset, ids: list[str], names: list[str]) -> CorrectedLabels:
    """Write the corrected labels `names` of the rows `ids` for the workspace `root`."""
    digests = dict(zip(dataset.sample_ids(), dataset.table(["digest"])["digest"].to_pylist(), strict=True))
    result = CorrectedLabels.open(home(root)).plus(ids, [digests[i] for i in ids], names)
    (home(root) / "labels.parquet").write_bytes(result.to_bytes())
    return result


def test_a_source_with_the_old_labels_gives_a_dataset_with_the_new_ones(tmp_path, dataset, data):
    keep(tmp_path, dataset, ROWS, ["bee", "ant"])
    known = CorrectedLabels.near(tmp_path / "data/dataset")
    write_dataset(tmp_path / "data/dataset", source_of(data), corrected=known)
    expected = data["labels"].copy()
    expected[[0, 5]] = 1, 0
    result = Dataset(tmp_path / "data/dataset")
    assert np.array_equal(result.labels(), expected) and result.sample_ids() == dataset.sample_ids()
    write_dataset(tmp_path / "data/dataset", source_of({**data, "labels": expected}), corrected=known)
    assert Dataset(tmp_path / "data/dataset").digest == result.digest  # where the source was corrected, too


def test_a_dataset_with_an_old_label_is_not_read(tmp_path, data):
    write_dataset(tmp_path / "data/dataset", source_of(data))
    dataset = Dataset(tmp_path / "data/dataset")
    keep(tmp_path, dataset, ROWS, ["bee", "ant"])
    with pytest.raises(DataError, match=r"old labels of 2 corrected rows again .* run `expunge sweep --apply`"):
        Dataset(tmp_path / "data/dataset")
    assert Dataset(tmp_path / "data/dataset", erased="allow").rows == 60


def test_the_later_of_two_corrections_counts(tmp_path, dataset):
    first = keep(tmp_path, dataset, ROWS, ["bee", "ant"])
    ids, digests = dataset.sample_ids(), dataset.table(["digest"])["digest"].to_pylist()
    both = first.plus(["row-005"], [digests[5]], ["bee"])
    found = both.labels("it", ids, digests, dataset.class_names)
    assert len(both) == 2 and found[[0, 5]].tolist() == [1, 1] and set(np.delete(found, [0, 5])) == {UNCHANGED}
    # Names of classes are stored, so a class that comes before the others moves no label.
    assert both.labels("it", ids, digests, ["aardvark", *dataset.class_names])[5] == 2
    with pytest.raises(DataError, match="corrected to 'bee', which is no class of it any more"):
        both.labels("it", ids, digests, ["ant", "cat"])


def test_other_content_under_a_corrected_id_is_refused(tmp_path, dataset, data):
    known = keep(tmp_path, dataset, ROWS, ["bee", "ant"])
    images = data["images"].copy()
    images[5] = 255 - images[5]
    with pytest.raises(DataError, match="1 rows have the ids of rows whose labels were corrected") as e:
        write_dataset(tmp_path / "other", source_of({**data, "images": images}), corrected=known)
    assert "row-005" not in str(e.value)


def test_ids_stand_there_only_as_digests_and_the_bytes_are_the_same_again(tmp_path, dataset, monkeypatch):
    result = keep(tmp_path, dataset, ROWS, ["bee", "ant"])
    assert b"row-0" not in result.to_bytes()
    assert CorrectedLabels.read(home(tmp_path)).to_bytes() == result.to_bytes()
    monkeypatch.setenv(VARIABLE, str(home(tmp_path)))
    assert len(CorrectedLabels.near("/elsewhere/data/dataset")) == 2


def test_damaged_labels_are_refused_and_never_taken_for_none(tmp_path, dataset):
    whole = keep(tmp_path, dataset, ROWS, ["bee", "ant"]).to_bytes()
    file = home(tmp_path) / "labels.parquet"
    for content in (whole[:-1], b""):
        file.write_bytes(content)
        with pytest.raises(DataError, match="the corrected labels cannot be read"):
            CorrectedLabels.near(tmp_path / "data/x")
    file.write_bytes(whole)
    (home(tmp_path) / "key").unlink()
    with pytest.raises(DataError, match="the key of the tombstones cannot be read"):
        CorrectedLabels.near(tmp_path / "data/x")
    assert CorrectedLabels.read(tmp_path / "none") is None
    CorrectedLabels.open(tmp_path / "none", keep=False)
    assert not (tmp_path / "none").exists()
