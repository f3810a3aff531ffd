"""Labels are replaced for good in every file that holds them, and what was made under the old ones goes."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.features.store import CLASS_SUMS, FeatureStore
from expunge.sweep import sweep
from expunge.sweep.journal import JOURNAL
from expunge.sweep.labels import sweep_labels
from expunge.system.errors import DataError, ExpungeError
from expunge.system.files import read_manifest
from tests import killing
from tests.sweep import people_workspace
from tests.sweep.test_inputs import parquet, png

CORRECTED = {f"record-{i:05d}": str((i + 1) % 3) for i in (3, 50, 51, 130)}  # training rows with the labels 0, 2, 0, 1
ROWS = [3, 50, 51, 130]


@pytest.fixture(autouse=True)
def nothing_outside(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    root = people_workspace.workspace(tmp_path_factory.mktemp("labels") / "workspace", [2])
    (root / "data/requests/one.txt").unlink()
    (root / ".expunge/train").mkdir(parents=True)
    (root / ".expunge/train/state").write_text("half a model")
    return root


@pytest.fixture
def root(before, tmp_path):
    return people_workspace.copy(before, tmp_path / "workspace")


def class_sums(root):
    """Return sums and counts of the features of training rows by class, computed from the rows."""
    store = FeatureStore(root / "data/features/original", verify=True)
    train = np.flatnonzero(store.column("split") == "train")
    labels = torch.from_numpy(store.column("label")[train].astype(np.int64))
    z = torch.from_numpy(store.z(train)).double()
    return torch.zeros(3, z.shape[1], dtype=torch.float64).index_add_(0, labels, z), torch.bincount(labels, minlength=3)


def test_labels_are_replaced_in_source_dataset_and_features(root):
    old, untouched = Dataset(root / "data/dataset"), root / "data/dataset/part-00002.parquet"
    digest, labels, inode = old.digest, old.labels().copy(), untouched.stat().st_ino
    z = FeatureStore(root / "data/features/original").z(np.arange(old.rows))
    report = sweep_labels(root, CORRECTED, apply=True)
    assert report.clean
    assert {(r.where, r.what): r.count for r in report.purged}["data/source/people.npz", "labels"] == 4
    labels[ROWS] = (labels[ROWS] + 1) % 3
    new, store = Dataset(root / "data/dataset"), FeatureStore(root / "data/features/original", verify=True)
    assert new.digest != digest and np.array_equal(new.labels(), labels)
    assert np.array_equal(store.column("label"), labels) and np.array_equal(store.z(np.arange(new.rows)), z)
    assert untouched.stat().st_ino == inode  # a shard without a corrected row stays the same file
    sums, counts = class_sums(root)
    stored_sums = load_file(root / "data/features/original" / CLASS_SUMS)
    assert torch.allclose(stored_sums["sums"], sums, rtol=0, atol=1e-12) and torch.equal(stored_sums["counts"], counts)
    activations = read_manifest(root / "data/activations")
    assert activations["dataset_digest"] == store.manifest["dataset_digest"] == new.digest
    for folder in ("data/split", "data/evaluation/loft", ".expunge/train"):
        assert not (root / folder).exists(), folder
    prepare("npz", root / "data/again", path=root / people_workspace.NPZ)
    again = Dataset(root / "data/again")
    assert np.array_equal(again.labels(), labels) and again.sample_ids() == new.sample_ids()
    assert np.array_equal(again.splits(), new.splits())


def test_a_dry_run_changes_nothing_and_a_second_run_finds_nothing(root):
    files = people_workspace.files(root)
    found = {(r.where, r.what) for r in sweep_labels(root, CORRECTED).found}
    assert {("data/dataset", "labels"), ("data/split", "made under the old labels")} < found
    assert people_workspace.files(root) == files
    sweep_labels(root, CORRECTED, apply=True)
    files = people_workspace.files(root)
    assert not sweep_labels(root, CORRECTED, apply=True).purged and not sweep_labels(root, apply=True).purged
    assert people_workspace.files(root) == files
    with pytest.raises(DataError, match="1 of the rows to correct are not in it") as e:
        sweep_labels(root, {"nobody": "1"}, apply=True)
    assert "nobody" not in str(e.value)


def test_old_labels_that_come_back_are_replaced_again(before, root):
    sweep_labels(root, CORRECTED, apply=True)
    good = Dataset(root / "data/dataset").digest
    for part in ("data/dataset", "data/features/original"):
        for file in (before / part).iterdir():
            (root / part / file.name).unlink()
            (root / part / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="old labels of 4 corrected rows again"):
        Dataset(root / "data/dataset")
    assert sweep_labels(root, apply=True).clean
    assert Dataset(root / "data/dataset").digest == good


def test_corrected_rows_can_be_erased_afterwards(root):
    sweep_labels(root, CORRECTED, apply=True)
    assert sweep(root, rows=["record-00050"], apply=True).clean
    labels = Dataset(root / "data/dataset").labels()
    assert len(labels) == people_workspace.ROWS - 1 and labels[3] == 1 and labels[129] == 2
    prepare("npz", root / "data/dataset", path=root / people_workspace.NPZ)
    assert np.array_equal(Dataset(root / "data/dataset").labels(), labels)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_sweep_that_is_killed_at_any_moment_is_completed_by_the_next(before, tmp_path, seed):
    def run(until: int, name: str):
        root = people_workspace.copy(before, tmp_path / name)
        (root / "data/tombstones").mkdir()
        (root / "data/tombstones/key").write_bytes(b"k" * 32)
        work = lambda: sweep_labels(root, CORRECTED, apply=True)  # noqa: E731
        return root, *killing.in_a_child(work, until, lambda _, path: str(root) in path)

    whole, status, events = run(0, "whole")
    assert status == 0 and events > 50
    root, status, _ = run(int(np.random.default_rng(seed).integers(1, events + 1)), "killed")
    assert os.WIFSIGNALED(status)
    try:
        labels = Dataset(root / "data/dataset").labels()[ROWS].tolist()
    except ExpungeError:
        assert (root / JOURNAL).is_file(), "unreadable only between the commit and its end"
    else:
        assert labels in ([0, 2, 0, 1], [1, 0, 1, 2])
    assert sweep_labels(root, CORRECTED, apply=True).clean
    assert people_workspace.files(root) == people_workspace.files(whole)


def read_from(root, reader: str, path: str) -> None:
    """Write params.yaml with this source."""
    people_workspace.params(root)
    text = (root / "params.yaml").read_text().replace("source: npz ", f"source: {reader} ")
    if reader == "text":
        text = text.replace("name: resnet-small ", "name: sentence:x ")
    (root / "params.yaml").write_text(text.replace(f"path: {people_workspace.NPZ}", f"path: {path}"))


@pytest.mark.parametrize("kind", ["parquet", "csv", "names"])
def test_labels_of_tables_are_written_as_other_rows_have_them(tmp_path, kind):
    root, names = tmp_path / "workspace", "abc" if kind == "names" else "012"
    source = root / "data/source/rows"
    if kind == "parquet":
        parquet(source, named=False)
    else:
        source.mkdir(parents=True)
        lines = [f"text number {i},{names[i % 3]}" for i in range(30)]
        (source / "all.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    reader = "parquet" if kind == "parquet" else "text"
    read_from(root, reader, "data/source/rows")
    prepare(reader, root / "data/dataset", path=source)
    first = Dataset(root / "data/dataset")
    row = int(np.flatnonzero((first.splits() == "train") & (first.labels() == 0))[0])
    labels, splits = first.labels().copy(), first.splits()
    assert sweep_labels(root, {first.sample_ids()[row]: names[2]}, apply=True).clean
    labels[row] = 2
    (root / "data/tombstones/labels.parquet").unlink()  # so that the source alone decides
    prepare(reader, root / "data/dataset", path=source)
    again = Dataset(root / "data/dataset")
    assert np.array_equal(again.labels(), labels) and np.array_equal(again.splits(), splits)
    assert again.class_names == first.class_names


def test_a_source_that_cannot_say_so_is_left_and_named(tmp_path):
    """The folder of a picture is its label and part of its id, so its owner has to move it."""
    root = tmp_path / "workspace"
    for i in range(12):
        file = root / "data/source/pictures" / ("test" if i % 4 == 3 else "train") / "ab"[i % 2] / f"patient-{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(i))
    read_from(root, "image-folder", "data/source/pictures")
    prepare("image-folder", root / "data/dataset", path=root / "data/source/pictures")
    first = Dataset(root / "data/dataset")
    row = int(np.flatnonzero(first.splits() == "train")[0])
    other = first.class_names[1 - first.labels()[row]]
    report = sweep_labels(root, {first.sample_ids()[row]: other}, apply=True)
    assert report.clean and [n.where for n in report.not_purgeable] == ["data/source/pictures"]
    assert "1 old labels in an input that the sweep must not rewrite" in report.not_purgeable[0].what
    prepare("image-folder", root / "data/dataset", path=root / "data/source/pictures")
    again = Dataset(root / "data/dataset")
    assert again.class_names[again.labels()[row]] == other
