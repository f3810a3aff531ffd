"""Tests that a batch selects exactly the rows of its requests, and that params.yaml changes only in `split`."""

from __future__ import annotations

from contextlib import chdir
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import yaml

from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.erasure.requests import Store
from expunge.erasure.selection import mask_of, select, with_split
from expunge.ledger.forgotten import ForgottenRows
from expunge.system.errors import ConfigError, ExpungeError, RequestError
from tests.erasure.promoted_batch import request_for
from tests.sweep import people_workspace

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["params.yaml", "params.demo.yaml"])
def test_only_the_section_split_of_params_changes(name):
    text = (ROOT / name).read_text()
    changed = with_split(text, Path("data/requests/B-1.csv"))
    wanted = yaml.safe_load(text)
    wanted["split"] |= {"selector": "ids", "file": "data/requests/B-1.csv"}
    assert yaml.safe_load(changed) == wanted
    different = [(a, b) for a, b in zip(text.splitlines(), changed.splitlines(), strict=True) if a != b]
    assert len(different) == 2 and all(b.partition("#")[2] == a.partition("#")[2] for a, b in different)
    assert with_split(changed, Path("data/requests/B-1.csv")) == changed


def test_a_batch_forgets_no_row_that_nobody_asked_for():
    text = (ROOT / "params.yaml").read_text()
    include = text.replace("near_duplicates: warn", "near_duplicates: include")
    asked, written = (yaml.safe_load(with_split(t, Path("a.csv"))) for t in (include, text))
    assert include != text and asked == written
    ignore = with_split(text.replace("near_duplicates: warn", "near_duplicates: ignore"), Path("a.csv"))
    assert yaml.safe_load(ignore)["split"]["near_duplicates"] == "ignore"


def test_any_style_of_yaml_is_edited_or_refused(tmp_path):
    dumped = yaml.safe_dump(yaml.safe_load((ROOT / "params.demo.yaml").read_text()), sort_keys=False)
    (tmp_path / "params.yaml").write_text(with_split(dumped, Path("data/requests/B-1.csv")))
    assert load_config(tmp_path / "params.yaml").split.file == "data/requests/B-1.csv"
    flow = with_split("split: {selector: classes, file: null}  # one line\n", Path("x.csv"))
    assert flow.split("#")[0].strip() == "split: {selector: ids, file: x.csv}" and flow.endswith("# one line\n")
    with pytest.raises(ConfigError, match="no section `split`"):
        with_split("data: {}\n", Path("x.csv"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = people_workspace.workspace(tmp_path_factory.mktemp("select") / "workspace", [5])
    store = Store.open(f"sqlite:///{root / 'records/requests.db'}")
    with chdir(root):
        yield root, store, Dataset("data/dataset")
    store.engine.dispose()


def test_a_request_is_all_rows_of_its_people(place):
    root, store, dataset = place
    people = np.array(dataset.table(["subject"])["subject"].to_pylist())
    request = request_for(store, root, [4, 9])
    assert np.array_equal(
        mask_of(store, request, dataset), np.isin(people, [people_workspace.person(4), people_workspace.person(9)])
    )
    chosen = select(store, [request], dataset, ForgottenRows("data/forgotten"))
    assert (
        chosen.erase.sum() == 20
        and chosen.forget.sum() == 16
        and chosen.people == (people_workspace.person(4), people_workspace.person(9))
    )


def test_what_was_forgotten_before_is_forgotten_again_and_not_erased(place):
    root, store, dataset = place
    request = request_for(store, root, [10])
    ids = dataset.sample_ids()
    earlier = "sha256:" + "e" * 64
    forgotten = ForgottenRows(root / "data/earlier", earlier, ids[:5])
    forgotten.keep(earlier)
    chosen = select(store, [request], dataset, forgotten)
    assert chosen.again.nonzero()[0].tolist() == [0, 1, 2, 3, 4]
    assert chosen.forget.sum() == 8 + 4 and chosen.erase.sum() == 10 and not chosen.erase[:5].any()


def test_a_model_that_never_saw_a_row_covers_it(tmp_path):
    """A new original that was trained after an erasure never saw those rows, so later requests need not name them."""
    first, second = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    ForgottenRows(tmp_path, first, ["a", "b"]).keep(first)
    assert ForgottenRows(tmp_path, second, ["c"]).covers(second, first) is False
    assert ForgottenRows(tmp_path, second, ["c"], present=["b", "c", "d"]).covers(second, first) is False
    later = ForgottenRows(tmp_path, second, ["c"], present=["c", "d"])
    assert later.covers(second, first) is True
    later.keep(second)
    assert ForgottenRows(tmp_path).covers(second, first) is True


def test_a_request_may_be_for_whole_classes(place):
    _, store, dataset = place
    id_ = store.add("R-20260220-c1a55e", "classes", [], classes=[2], received=date(2026, 2, 20), basis="", who="ann").id
    assert np.array_equal(mask_of(store, store.get(id_), dataset), dataset.labels() == 2)


def test_a_list_that_is_gone_changed_or_wrong_is_named_without_its_people(place):
    root, store, dataset = place
    request = request_for(store, root, [11])
    file = root / request.file
    content = file.read_text()
    file.write_text(content + people_workspace.person(12) + "\n")
    with pytest.raises(RequestError, match="is not what was asked"):
        mask_of(store, request, dataset)
    file.unlink()
    with pytest.raises(RequestError, match="dvc checkout"):
        mask_of(store, request, dataset)
    unknown = request_for(store, root, [77])
    with pytest.raises(ExpungeError, match="1 of 1 subjects are not in the dataset") as e:
        mask_of(store, unknown, dataset)
    assert "subject-077" not in str(e.value)
