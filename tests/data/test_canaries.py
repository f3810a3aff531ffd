"""Canaries are planted in the digits, the split forgets them, and a model that learned them can be recognised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.ensemble import RandomForestClassifier

from expunge.data.canaries import CANARIES, Planter, canary_rows
from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.data.split import Split, split
from expunge.data.tombstones import Tombstones, home
from expunge.data.writer import write_dataset
from expunge.evaluation.exposure import CanaryRows, canary_block
from expunge.system.errors import DataError
from tests.data.sources import arrays, source_of

COUNT = 60


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("canaries") / "dataset"
    prepare("digits", out, canaries=COUNT)
    return Dataset(out)


def test_canaries_are_mislabelled_copies_of_training_rows(digits: Dataset) -> None:
    table = pq.read_table(digits.directory / CANARIES).to_pydict()
    ids, labels, splits, content = digits.sample_ids(), digits.labels(), digits.splits(), digits.digests()
    row = {sample_id: i for i, sample_id in enumerate(ids)}
    assert len(set(table["source"])) == 2 * COUNT
    assert all(splits[row[source]] == "train" for source in table["source"])
    planted = [(i, s, y) for i, s, y in zip(*table.values(), strict=True) if i is not None]
    assert len(planted) == COUNT and sum(i.startswith("canary-") for i in ids) == COUNT
    for sample_id, source, label in planted:
        assert labels[row[sample_id]] == label and splits[row[sample_id]] == "train"
        assert content[row[sample_id]] == content[row[source]]
    assert all(label != labels[row[source]] for source, label in zip(table["source"], table["label"], strict=True))


def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_rows(tmp_path: Path) -> None:
    def drawn(data: dict, name: str, seed: int = 0) -> set[tuple]:
        write_dataset(tmp_path / name, source_of(data), planter=Planter(8, 3, seed))
        return {tuple(r.values()) for r in pq.read_table(tmp_path / name / CANARIES).to_pylist()}

    data = arrays()
    order = np.random.default_rng(5).permutation(len(data["ids"]))
    turned = {k: v[order] if isinstance(v, np.ndarray) else [v[i] for i in order] for k, v in data.items()}
    assert drawn(data, "a") == drawn(turned, "b") != drawn(data, "c", seed=1)


def test_the_split_forgets_them_and_takes_no_twin_along(tmp_path: Path, digits: Dataset) -> None:
    request = split(digits, tmp_path / "s", selector="canaries", duplicates="refuse")
    assert request["forget_rows"] == COUNT and request["duplicates_left_in_retain"] == 0
    ids = np.array(digits.sample_ids())[Split(tmp_path / "s").rows("forget")]
    assert all(sample_id.startswith("canary-") for sample_id in ids)


def test_a_model_that_learned_them_differs_from_one_that_never_saw_them(digits: Dataset) -> None:
    x = np.asarray(digits.images(np.arange(digits.rows))).reshape(digits.rows, -1)
    y, train = digits.labels(), digits.splits() == "train"
    found = canary_rows(digits.directory, digits.sample_ids())
    assert found is not None
    rows = CanaryRows(*found)
    without = train.copy()
    without[rows.planted] = False

    def block(mask: np.ndarray) -> dict:
        forest = RandomForestClassifier(100, random_state=0, bootstrap=False).fit(x[mask], y[mask])
        report = canary_block(np.log(forest.predict_proba(x) + 1e-9), rows)
        assert report is not None
        return report

    assert block(train)["p_remembered"] < 1e-6 and block(train)["exposure"] > 3
    assert min(block(without)["p_remembered"], block(without)["p_overshot"]) > 0.01


def test_too_many_canaries_and_forgetting_without_any_are_refused(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(DataError, match="no canaries were planted"):
        split(dataset, tmp_path / "s", selector="canaries")
    with pytest.raises(DataError, match="canaries need 4000 training rows"):
        prepare("digits", tmp_path / "d", canaries=2000)
    assert not (tmp_path / "d").exists()


def test_nothing_is_planted_where_rows_were_erased(tmp_path: Path) -> None:
    Tombstones.open(home(tmp_path)).plus(["digits-0"], []).write()
    with pytest.raises(DataError, match="rows were erased in this workspace"):
        prepare("digits", tmp_path / "data" / "dataset", canaries=5)
