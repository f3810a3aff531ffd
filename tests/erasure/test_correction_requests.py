"""Test requests for other labels without training a model: intake, what the pipeline is given, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from expunge.data.corrections import read_labels
from expunge.data.dataset import Dataset
from expunge.data.split import Split
from expunge.data.tombstones import Tombstones, home
from expunge.erasure.batches import Step
from expunge.erasure.intake import take_in
from expunge.erasure.requests import Store
from expunge.erasure.selection import select
from expunge.ledger.forgotten import ForgottenRows, label_pair
from expunge.system.errors import RequestError
from tests.erasure.promoted_batch import TODAY
from tests.erasure.test_lifecycle import bytes_below, life, split_only
from tests.pipeline import change

OTHERS = {"record-00001": "2", "record-00003": "1"}  # training rows with the labels 1 and 0


def listed(place: Path, labels: dict[str, str]) -> Path:
    place.write_text("".join(f"{i},{name}\n" for i, name in [("sample_id", "label"), *labels.items()]))
    return place


def asked(store: Store, place: Path, labels: dict[str, str]) -> str:
    request = take_in(store, correct=listed(place, labels), basis="", received=TODAY, today=TODAY, who="ann")
    return store.verify(request.id, "ben", "", {}).id


@pytest.mark.slow
def test_a_correction_is_taken_in_and_verified_on_the_command_line(root, expunge, tmp_path):
    source = listed(tmp_path / "mine.csv", OTHERS)
    assert "exactly one of these" in expunge("request", "add", "--correct", str(source), "--classes", "2").err
    added = expunge("request", "add", "--correct", str(source), "--received", "2026-01-31")
    assert added.status == 0 and "2 labels, due 2026-02-28" in added.out, added.err
    id_ = added.out.partition(":")[0]
    file = root / "data/requests" / f"{id_}.csv"
    assert file.stat().st_mode & 0o077 == 0 and read_labels(file) == OTHERS
    again = expunge("request", "add", "--correct", str(listed(source, dict(reversed(OTHERS.items())))))
    assert again.status == 2 and f"request {id_}" in again.err and "nothing was added" in again.err
    verified = expunge("request", "verify", id_, "--reason", "compared with the letter")
    assert verified.status == 0 and "verified, 2 rows" in verified.out, verified.err
    assert b"record-000" not in bytes_below(root)
    assert expunge("request", "refuse", id_, "--reason", "they were right").status == 0
    assert not file.exists() and not Store.open().has_key(id_)


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ({"record-00004": "0"}, "1 values are test rows"),
        ({"nobody": "0"}, "1 values are not in the dataset"),
        ({"record-00001": "1"}, "have that label already"),
        ({"record-00001": "9"}, "'9' is not a class"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_without_its_ids(root, expunge, tmp_path, labels, why):
    id_ = expunge("request", "add", "--correct", str(listed(tmp_path / "a.csv", labels))).out.partition(":")[0]
    refused = expunge("request", "verify", id_)
    assert refused.status == 2 and why in refused.err and "record-0" not in refused.err and "nobody" not in refused.err
    assert f"request {id_}" in refused.err and "Refuse it" in refused.err


def test_a_list_without_labels_leaves_nothing_behind(root, expunge, tmp_path):
    (tmp_path / "a.csv").write_text("sample_id\nrecord-00001\n")
    refused = expunge("request", "add", "--correct", str(tmp_path / "a.csv"))
    assert refused.status == 2 and "no column 'label'" in refused.err and not list((root / "data/requests").glob("R-*"))


@pytest.mark.slow
def test_the_pipeline_is_given_the_labels_of_all_requests(without_reference, tmp_path):
    change(without_reference, lambda p: (p["split"].update(duplicates="include"), p["shadow"].update(heads=8)))
    before, store, seen = Path("params.yaml").read_bytes(), Store.open(), {}
    for i, (row, name) in enumerate(OTHERS.items()):
        asked(store, tmp_path / f"{i}.csv", {row: name})

    def look(stages=(), force=False) -> None:
        if not stages:
            params = yaml.safe_load(Path("params.yaml").read_text())
            seen.update(
                params["split"], heads=params["shadow"]["heads"], labels=read_labels(Path(params["split"]["file"]))
            )
            split_only()

    outcome = life(store, look).advance(TODAY)
    assert (seen["selector"], seen["duplicates"], seen["heads"], seen["labels"]) == ("correct", "warn", 0, OTHERS)
    assert outcome.state == "refused"  # nothing qualified, and there is no retrained model
    assert Path("params.yaml").read_bytes() == before and not list(Path("data/requests").glob("*.csv"))
    split = Split("data/split")
    assert split.corrections.new.tolist() == [2, 1] and split.corrections.rows.tolist() == [1, 3]


@pytest.mark.slow
def test_a_run_that_taught_other_labels_starts_over(without_reference, tmp_path):
    store = Store.open()
    asked(store, tmp_path / "a.csv", OTHERS)

    def teaches_others(stages=(), force=False) -> None:
        if not stages:
            listed(
                Path(yaml.safe_load(Path("params.yaml").read_text())["split"]["file"]), {**OTHERS, "record-00001": "0"}
            )
            split_only()

    runner = life(store, teaches_others)
    with pytest.raises(RequestError, match="taught other labels"):
        runner.advance(TODAY)
    assert runner.batches.current().step == Step.prepare


def test_requests_that_contradict_each_other_or_an_earlier_one_are_refused(root, tmp_path):
    store, dataset = Store.open(), Dataset("data/dataset")
    one = asked(store, tmp_path / "a.csv", OTHERS)
    two = asked(store, tmp_path / "b.csv", {"record-00001": "0", "record-00006": "1"})
    with pytest.raises(RequestError, match="1 rows other labels than another request") as e:
        select(store, [store.get(one), store.get(two)], dataset, ForgottenRows("data/forgotten"))
    assert "record-" not in str(e.value)
    earlier = "sha256:" + "e" * 64
    ForgottenRows("data/forgotten", earlier, [label_pair("record-00006", "1")]).keep(earlier)
    with pytest.raises(RequestError, match="1 rows labels that an earlier request replaced"):
        select(store, [store.get(two)], dataset, ForgottenRows("data/forgotten"))
    chosen = select(store, [store.get(one)], dataset, ForgottenRows("data/forgotten"))
    assert chosen.labels == OTHERS and np.flatnonzero(chosen.forget).tolist() == [1, 3]
    ForgottenRows("data/forgotten", "sha256:" + "f" * 64, ["record-00009"]).keep("sha256:" + "f" * 64)
    with pytest.raises(RequestError, match="1 rows that a promoted version had forgotten are still in"):
        select(store, [store.get(one)], dataset, ForgottenRows("data/forgotten"))


def test_rows_that_were_erased_need_no_label(root, tmp_path):
    store = Store.open()
    Tombstones.open(home(root)).plus(["gone"], []).write()
    id_ = asked(store, tmp_path / "a.csv", {**OTHERS, "gone": "1"})
    chosen = select(store, [store.get(id_)], Dataset("data/dataset"), ForgottenRows("data/forgotten"))
    assert chosen.labels == OTHERS
