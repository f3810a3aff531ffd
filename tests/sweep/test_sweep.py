"""Test what a sweep removes from a small workspace with people, and what it leaves unchanged."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file
from typer.testing import CliRunner

from expunge.cli import app
from expunge.core import Moments
from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.data.split import Split
from expunge.features.store import CLASS_SUMS, MOMENTS, FeatureStore
from expunge.ledger.forgotten import ForgottenRows
from expunge.sweep import sweep
from expunge.system.errors import DataError
from expunge.system.files import read_manifest
from expunge.tracking import model_name
from tests.sweep import people_workspace
from tests.system.test_storage import left_behind

ERASED = [2, 3, 17]  # The rows of these people are in two of the six shards.


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return people_workspace.workspace(tmp_path_factory.mktemp("sweep") / "workspace", ERASED)


@pytest.fixture
def root(before, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return people_workspace.copy(before, tmp_path / "workspace")


def erase(root, apply=True):
    return sweep(root, subjects=[people_workspace.person(i) for i in ERASED], apply=apply)


def kept_rows(directory, name="data/dataset"):
    parts = [pq.read_table(p) for p in sorted((directory / name).glob("part-*.parquet"))]
    erased = {people_workspace.person(i) for i in ERASED}
    rows = [row for part in parts for row in part.to_pylist()]
    return [row for row in rows if row["subject"] not in erased], len(rows)


def test_a_dry_run_finds_everything_and_changes_nothing(root):
    state = people_workspace.files(root)
    report = erase(root, apply=False)
    assert people_workspace.files(root) == state and not (root / "data/tombstones").exists()
    counts = {entry.where: entry.count for entry in report.found}
    assert counts == {
        "data/dataset": 30,
        "data/split": 30,
        "data/features/original": 30,
        "data/evaluation/loft": 30,
        "data/activations": 24,
        str(people_workspace.NPZ): 30,
        "data/requests": 3,
    }
    assert not report.purged


def test_what_a_killed_stage_left_half_written_goes_too(root):
    """DVC may restore the outputs of such a stage from its cache, so that no run of the stage removes the rest."""
    features = root / "data/features"
    shutil.copytree(features / "original", features / ".original.tmp")
    (features / ".original.tmp/manifest.json").rename(features / ".original.tmp/.manifest.json.tmp")
    (root / "reports").mkdir(exist_ok=True)
    (root / "reports/.results.md.tmp").write_text("")
    found = {entry.where: entry for entry in erase(root, apply=False).found}
    assert found["data/features/.original.tmp"].count > 3 and found["reports/.results.md.tmp"].count == 1
    assert "data/features/.original.tmp/.manifest.json.tmp" not in found
    report = erase(root)
    assert report.clean and {"data/features/.original.tmp", "reports/.results.md.tmp"} <= {
        r.where for r in report.purged
    }
    assert not left_behind(root) and (features / "original/manifest.json").is_file()


def test_erased_rows_leave_every_store_and_the_others_keep_content_and_order(root, before):
    report = erase(root)
    assert report.clean and {r.where for r in report.purged} >= {"data/dataset", "data/features/original"}
    for name in ("data/dataset", "data/features/original"):
        rest, _ = kept_rows(before, name)
        left, count = kept_rows(root, name)
        assert left == rest and count == len(rest) == people_workspace.ROWS - 30
    for content in people_workspace.files(root).values():
        assert not any(people_workspace.person(i).encode() in content for i in ERASED)
    dataset, split, store = (
        Dataset(root / "data/dataset"),
        Split(root / "data/split"),
        FeatureStore(root / "data/features/original", verify=True),
    )
    assert dataset.manifest["rows_train"] == 192 - 24 and dataset.manifest["rows_test"] == 48 - 6
    assert len(split.parts) == store.rows == dataset.rows and len(split.rows("forget")) == 0
    assert split.request["erased"] == 30 and split.request["forget_rows"] == 24
    assert split.manifest["dataset"] == store.manifest["dataset_digest"] == dataset.digest
    assert np.array_equal(store.column("sample_id"), dataset.sample_ids())
    read_manifest(root / "data/evaluation/loft"), read_manifest(root / "data/activations")
    assert not (root / "data/requests/one.txt").exists()


def test_moments_and_class_sums_are_those_of_the_rows_that_stay(root):
    erase(root)
    store, dataset = FeatureStore(root / "data/features/original"), Dataset(root / "data/dataset")
    train = dataset.splits() == "train"
    z, labels = torch.from_numpy(store.z()[train]), torch.from_numpy(dataset.labels()[train].astype(np.int64))
    fresh, left = Moments.of(z), Moments.load(store.directory / MOMENTS)
    assert left.n == fresh.n == 168
    assert torch.allclose(left.s, fresh.s, atol=1e-12) and torch.allclose(left.S, fresh.S, atol=1e-11)
    sums = load_file(store.directory / CLASS_SUMS)
    wanted = torch.zeros(3, people_workspace.DIM, dtype=torch.float64).index_add_(0, labels, z.double())
    assert (
        torch.allclose(sums["sums"], wanted, atol=1e-12) and sums["counts"].tolist() == torch.bincount(labels).tolist()
    )


def test_activations_lose_the_same_rows(root, before):
    table = Dataset(before / "data/dataset").table(["subject", "split"])
    train = [row["subject"] for row in table.to_pylist() if row["split"] == "train"]
    erased = {people_workspace.person(i) for i in ERASED}
    whole = np.load(before / "data/activations/stage1.npy")
    erase(root)
    left = np.load(root / "data/activations/stage1.npy")
    assert np.array_equal(left, whole[[s not in erased for s in train]]) and len(left) == 168
    assert read_manifest(root / "data/activations")["dataset_digest"] == Dataset(root / "data/dataset").digest


def test_only_shards_that_hold_erased_rows_are_written(root):
    shards = sorted([*(root / "data/dataset").glob("part-*"), *(root / "data/features/original").glob("part-*")])
    inodes = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in shards}
    erase(root)
    touched = {p.name for p, was in inodes.items() if (p.stat().st_ino, p.stat().st_mtime_ns) != was}
    # People 2, 3 and 17 are rows 20 to 39 and 170 to 179; a shard holds 40.
    assert touched == {"part-00000.parquet", "part-00004.parquet"} and len(inodes) == 12


def test_a_source_that_implied_ids_and_split_states_them_afterwards(root, tmp_path):
    with np.load(root / people_workspace.NPZ) as archive:
        arrays = {n: archive[n] for n in ("images", "labels")}
    np.savez(root / people_workspace.NPZ, **arrays)
    for name in ("dataset", "split", "features", "evaluation", "activations", "requests"):
        shutil.rmtree(root / "data" / name)
    prepare("npz", root / "data/dataset", path=root / people_workspace.NPZ)
    before = {r["sample_id"]: r for r in pq.read_table(root / "data/dataset/part-00000.parquet").to_pylist()}
    report = sweep(root, ["007", "100"], apply=True)
    assert report.clean
    prepare("npz", tmp_path / "again", path=root / people_workspace.NPZ)
    again = {r["sample_id"]: r for r in pq.read_table(tmp_path / "again/part-00000.parquet").to_pylist()}
    assert again == {i: r for i, r in before.items() if i not in ("007", "100")}


def test_erased_rows_do_not_come_back(root, before, tmp_path):
    erase(root)
    for name, read in (("dataset", Dataset), ("split", Split), ("features/original", FeatureStore)):
        shutil.move(root / "data" / name, tmp_path / "swept")
        shutil.copytree(before / "data" / name, root / "data" / name)  # Somebody restores a backup.
        with pytest.raises(DataError, match=r"contains .* erased rows again"):
            read(root / "data" / name)
        shutil.rmtree(root / "data" / name)
        shutil.move(tmp_path / "swept", root / "data" / name)
    shutil.copy(before / people_workspace.NPZ, root / people_workspace.NPZ)
    manifest = prepare("npz", root / "data/dataset", path=root / people_workspace.NPZ)
    assert manifest["rows_train"] + manifest["rows_test"] == people_workspace.ROWS - 30
    assert kept_rows(root) == (kept_rows(before)[0], people_workspace.ROWS - 30)


def test_a_sweep_without_rows_repairs_what_came_back(root, before):
    erase(root)
    state = people_workspace.files(root)
    for name in ("data/dataset", "data/features"):
        shutil.rmtree(root / name)
        shutil.copytree(before / name, root / name)
    report = sweep(root, apply=True)
    assert {r.where: r.count for r in report.purged} == {
        "data/dataset": 30,
        "data/features/original": 30,
        "data/activations": 1,
    }
    assert report.clean
    after = people_workspace.files(root)
    # Activations hold no ids and belong to the swept dataset, so they are removed.
    assert after == {n: c for n, c in state.items() if not n.startswith("data/activations")}


def test_altered_copies_under_an_erased_id_are_refused(root, tmp_path):
    erase(root)
    with np.load(root / people_workspace.NPZ) as archive:
        arrays = dict(archive)
    arrays["ids"][0] = "record-00020"
    np.savez(tmp_path / "altered.npz", **arrays)
    with pytest.raises(DataError, match="ids of erased rows, but different content"):
        prepare("npz", root / "data/dataset", path=tmp_path / "altered.npz")


def test_a_retained_copy_of_an_erased_row_stays_and_is_reported(root):
    with np.load(root / people_workspace.NPZ) as archive:
        arrays = dict(archive)
    arrays["images"][0] = arrays["images"][20]  # Person 0 has a picture of person 2.
    np.savez(root / people_workspace.NPZ, **arrays)
    prepare("npz", root / "data/dataset", path=root / people_workspace.NPZ)
    people_workspace.features(root, Dataset(root / "data/dataset"), people_workspace.SHARD)
    report = erase(root)
    assert [(r.where, r.count) for r in report.left] == [("data/dataset", 1)]
    assert "record-00000" in Dataset(root / "data/dataset").sample_ids()


def test_lists_keep_what_others_asked_for(root):
    (root / "data/requests/two.csv").write_text(
        f"subject\n{people_workspace.person(2)}\n{people_workspace.person(9)}\n"
    )
    erase(root)
    assert (root / "data/requests/two.csv").read_text() == f"subject\n{people_workspace.person(9)}\n"


def test_unknown_rows_are_refused_before_anything_changes(root):
    state = people_workspace.files(root)
    with pytest.raises(DataError, match="1 of the rows to erase are not in it and never were"):
        sweep(root, ["record-00001", "nobody"], apply=True)
    assert people_workspace.files(root).keys() - state.keys() == set()
    with pytest.raises(DataError, match="no training row would be left"):
        sweep(root, [f"record-{i:05d}" for i in range(people_workspace.ROWS)], apply=True)
    assert people_workspace.files(root) == state


def test_erasing_again_does_nothing(root):
    erase(root)
    state = people_workspace.files(root)
    report = erase(root)
    assert report.clean and not report.purged and people_workspace.files(root) == state


def test_reports_and_results_with_ids_go(root, tmp_path):
    (root / "reports/data_docs").mkdir(parents=True)
    (root / "reports/data_docs/index.html").write_text("unexpected: record-00021")
    (root / "reports/fine.json").write_text('{"rows": 12, "neighbour": "record-00210"}')
    storage = tmp_path / "prefect/storage"
    storage.mkdir(parents=True)
    (storage / "result").write_bytes(b"x" * 100 + b"subject-002-c" + b"y" * 100)
    report = erase(root)
    assert {("reports/data_docs", "files with ids"), ("Prefect results", "files with ids")} <= {
        (r.where, r.what) for r in report.purged
    }
    assert not (storage / "result").exists() and not (root / "reports/data_docs/index.html").exists()
    assert (root / "reports/fine.json").exists()


@pytest.mark.parametrize(("part", "left"), [("test", 2), ("train", 0)])
def test_versions_are_removed_only_if_erased_rows_were_trained_on(part, left, root, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    client = MlflowClient()
    params = yaml.safe_load((root / "params.yaml").read_text())
    name = params["register"]["name"] or model_name(params["data"]["source"], params["model"]["name"])
    client.create_registered_model(name)
    experiment = client.create_experiment("x", (root / "mlartifacts").as_uri())
    for number in range(2):
        model = client.create_logged_model(experiment, name=f"m{number}")
        client.create_model_version(name, model.model_uri, tags={"request": "sha256:0"}, model_id=model.model_id)
    dataset = Dataset(root / "data/dataset")
    row = np.flatnonzero(dataset.splits() == part)[0]
    sweep(root, [dataset.sample_ids()[row]], apply=True)
    assert len(client.search_model_versions(f"name = '{name}'")) == left


def test_tombstones_reveal_nothing_without_their_key(root):
    erase(root)
    key, rows = root / "data/tombstones/key", root / "data/tombstones/rows.safetensors"
    assert key.stat().st_mode & 0o777 == 0o600
    content = rows.read_bytes()
    assert hashlib.blake2b(b"record-00020", digest_size=16).digest() not in content
    key.unlink()
    with pytest.raises(DataError, match="the key of the tombstones cannot be read"):
        Dataset(root / "data/dataset")


def test_the_command_takes_what_promoted_versions_had_forgotten(root, monkeypatch):
    monkeypatch.chdir(root)
    split, ids = Split(root / "data/split"), Dataset(root / "data/dataset").sample_ids()
    digest = split.request["digest"]
    ForgottenRows(root / "data/forgotten", digest, [ids[i] for i in split.rows("forget")]).keep(digest)
    state = people_workspace.files(root)
    looked = CliRunner().invoke(app, ["sweep"])
    assert looked.exit_code == 0 and "expunge sweep --apply" in looked.output and people_workspace.files(root) == state
    done = CliRunner().invoke(app, ["sweep", "--apply", "--json"])
    assert done.exit_code == 0
    purged = {r["where"]: r["count"] for r in json.loads(done.output)["purged"]}
    assert purged["data/dataset"] == 24  # A version forgets only training rows.
    assert not any(people_workspace.person(i) in done.output or "record-" in done.output for i in ERASED)
    (root / "people.txt").write_text("".join(f"{people_workspace.person(i)}\n" for i in ERASED))
    rest = CliRunner().invoke(app, ["sweep", "--apply", "--json", "--subjects", "people.txt"])
    assert {r["where"]: r["count"] for r in json.loads(rest.output)["purged"]}["data/dataset"] == 6
    assert not set(Dataset(root / "data/dataset").table(["subject"])["subject"].to_pylist()) & {
        people_workspace.person(2)
    }
