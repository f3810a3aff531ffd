"""Tombstones recognise erased rows by keyed digests of ids and contents, and damaged ones are refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from expunge.data.dataset import Dataset
from expunge.data.selectors import id_rows, subject_rows
from expunge.data.tombstones import VARIABLE, Tombstones, home
from expunge.system.errors import DataError

DIGEST = hashlib.blake2b(b"pixels", digest_size=16).digest()


def test_rows_are_known_by_id_and_by_content(tmp_path):
    Tombstones.open(home(tmp_path)).plus(["ann", "bob"], [DIGEST]).write()
    known = Tombstones.near(tmp_path / "data/dataset")
    hits = known.hits(["ann", "eve", "eve"], [b"x" * 16, DIGEST, b"y" * 16])
    assert hits.ids.tolist() == [True, False, False] and hits.contents.tolist() == [False, True, False]
    assert hits.any.tolist() == [True, True, False] and len(known) == 2
    more = known.plus(["ann", "cat"], [DIGEST])
    assert len(more) == 3 and len(more.contents) == 1


def test_the_same_rows_give_other_digests_under_another_key(tmp_path):
    both = [Tombstones.open(tmp_path / name).plus(["ann"], [DIGEST]) for name in ("a", "b")]
    assert both[0].to_bytes() != both[1].to_bytes()
    again = Tombstones.open(tmp_path / "a").plus(["ann"], [DIGEST])
    assert again.to_bytes() == both[0].to_bytes()
    plain = hashlib.blake2b(b"ann", digest_size=16).digest()
    assert plain not in both[0].to_bytes() and DIGEST not in both[0].to_bytes()


def test_reading_creates_no_key(tmp_path):
    assert Tombstones.read(tmp_path / "x") is None
    Tombstones.open(tmp_path / "x", keep=False).plus(["ann"], [])
    assert not (tmp_path / "x").exists()


def test_they_hold_for_workspaces_below_and_where_the_variable_points(tmp_path, monkeypatch):
    Tombstones.open(home(tmp_path)).plus(["ann"], []).write()
    assert Tombstones.near(tmp_path / ".expunge/demo/data/dataset").hits(["ann"]).any.all()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "shared"))
    assert Tombstones.near(tmp_path / "data/dataset") is None
    Tombstones.open(home(tmp_path)).plus(["bob"], []).write()
    assert (tmp_path / "shared/rows.safetensors").is_file()
    assert Tombstones.near(tmp_path / "elsewhere").hits(["ann", "bob"]).any.tolist() == [False, True]


def test_damaged_tombstones_are_refused_and_never_taken_for_none(tmp_path):
    folder = home(tmp_path)
    Tombstones.open(folder).plus(["ann"], [DIGEST]).write()
    whole = (folder / "rows.safetensors").read_bytes()
    for content in (whole[:-1], b"", b"{}"):
        (folder / "rows.safetensors").write_bytes(content)
        with pytest.raises(DataError, match="the tombstones cannot be read"):
            Tombstones.near(tmp_path / "data/x")
    (folder / "rows.safetensors").write_bytes(whole)
    (folder / "key").write_bytes(b"short")
    with pytest.raises(DataError, match="but a key has 32"):
        Tombstones.near(tmp_path / "data/x")


def test_lists_may_name_what_was_erased(dataset: Dataset, tmp_path):
    Tombstones.open(home(dataset.directory.parent)).plus(["gone-1", "person-99"], []).write()
    train = dataset.splits() == "train"
    (tmp_path / "ids.txt").write_text("row-000\ngone-1\n")
    assert np.flatnonzero(id_rows(dataset, train, tmp_path / "ids.txt")).tolist() == [0]
    (tmp_path / "people.txt").write_text("person-1\nperson-99\n")
    assert subject_rows(dataset, tmp_path / "people.txt").any()
    (tmp_path / "ids.txt").write_text("row-000\nnever-there\n")
    with pytest.raises(DataError, match="1 values are not in the dataset"):
        id_rows(dataset, train, tmp_path / "ids.txt")
