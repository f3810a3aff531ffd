"""Extraction stores the features of every row once and the Moments of the training rows.

It can be resumed after a kill, and a damaged shard can be made again alone, with the same bytes.
"""

import dataclasses
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from expunge.core import Moments
from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.features.extract import ExtractionSettings, extract, extract_shards
from expunge.features.store import FeatureStore
from expunge.models.zoo import build
from expunge.system.errors import DataError
from expunge.system.files import read_manifest
from tests.features import extraction_worker

SETTINGS = ExtractionSettings(batch_size=64, shard_rows=400)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "dataset"
    prepare("digits", directory)
    return Dataset(directory)


@pytest.fixture(scope="module")
def classifier(dataset):
    return build("resnet-small", 10, dataset.image_shape, seed=1)


@pytest.fixture(scope="module")
def store(dataset, classifier, tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    extract(classifier, dataset, root / "out", root / "work", SETTINGS)
    return root / "out"


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def test_features_are_the_models_own(store, dataset, classifier):
    with torch.inference_mode():
        expected = torch.cat([classifier.features(images) for _, images in dataset.iter_batches(64)]).numpy()
    np.testing.assert_allclose(FeatureStore(store).z(), expected, rtol=1e-4, atol=1e-5)
    shards = FeatureStore(store, verify=True).manifest["files"]
    assert all("groups" in entry for name, entry in shards.items() if name.endswith(".parquet"))
    assert FeatureStore(store).column("sample_id").tolist() == dataset.sample_ids()


def test_moments_and_class_sums_are_of_training_rows(store, dataset):
    train = dataset.splits() == "train"
    z = torch.from_numpy(FeatureStore(store).z()[train])
    stored, direct = Moments.load(store / "moments.safetensors"), Moments.of(z)
    assert stored.n == int(train.sum())
    torch.testing.assert_close(stored.mean, direct.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(stored.cov(), direct.cov(), rtol=1e-9, atol=1e-11)
    sums = load_file(store / "class_sums.safetensors")
    labels = dataset.labels()[train]
    np.testing.assert_array_equal(sums["counts"].numpy(), np.bincount(labels))
    np.testing.assert_allclose(sums["sums"][3].numpy(), z[labels == 3].double().sum(0).numpy(), rtol=1e-10)


def test_a_second_run_gives_the_same_bytes(store, dataset, classifier, tmp_path):
    extract(classifier, dataset, tmp_path / "out", tmp_path / "work", SETTINGS)
    assert contents(tmp_path / "out") == contents(store)
    assert not any((tmp_path / "work").iterdir())


def test_a_damaged_shard_alone_is_made_again(store, dataset, classifier, tmp_path, capsys):
    work, _ = extract_shards(classifier, dataset, tmp_path / "work", SETTINGS)
    before = {p.name: p.stat().st_mtime_ns for p in work.glob("part-*.parquet")}
    shard = work / "part-00002.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    extract_shards(classifier, dataset, tmp_path / "work", SETTINGS)
    after = {p.name: p.stat().st_mtime_ns for p in work.glob("part-*.parquet")}
    assert [name for name in before if before[name] != after[name]] == ["part-00002.parquet"]
    assert "is damaged" in capsys.readouterr().err
    extract(classifier, dataset, tmp_path / "out", tmp_path / "work", SETTINGS)
    assert contents(tmp_path / "out") == contents(store)


def test_features_that_are_not_finite_are_refused_by_row(dataset, tmp_path):
    broken = build("resnet-small", 10, dataset.image_shape, seed=1)
    with torch.no_grad():
        broken.backbone.stem[0].weight.fill_(float("nan"))
    with pytest.raises(DataError, match=rf"not finite, first sample_id '{dataset.sample_ids()[0]}'"):
        extract(broken, dataset, tmp_path / "out", tmp_path / "work", SETTINGS)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def decided(store, dataset):
    """Return the classifier with a head fitted to its features.

    The top logits of an untrained head are so close that rounding would change many predictions.
    """
    z = torch.from_numpy(FeatureStore(store).z()).double()
    targets = 10 * torch.nn.functional.one_hot(torch.tensor(dataset.labels()).long(), 10).double()
    weight = torch.linalg.solve(z.T @ z + 1e-3 * torch.eye(z.shape[1]), z.T @ targets).T
    classifier = build("resnet-small", 10, dataset.image_shape, seed=1)
    classifier.set_head(weight.float(), torch.zeros(10))
    return classifier


@pytest.mark.parametrize(("dtype", "name"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_rounding_that_stays_below_the_bound_is_accepted_and_recorded(
    store, dataset, decided, tmp_path, capsys, dtype, name
):
    settings = dataclasses.replace(SETTINGS, dtype=dtype)
    result = extract(decided, dataset, tmp_path / "out", tmp_path / "work", settings)
    narrowed, exact = FeatureStore(tmp_path / "out", verify=True), FeatureStore(store)
    with torch.no_grad():
        rounded, whole = (decided.head(torch.from_numpy(s.z())) for s in (narrowed, exact))
    losses = result["loss"].values()
    largest = float((rounded - whole).abs().max())
    assert max(loss["max_logit_difference"] for loss in losses) == pytest.approx(largest, abs=2e-5)
    assert sum(loss["changed_predictions"] for loss in losses) == int((rounded.argmax(1) != whole.argmax(1)).sum())
    assert 1e-4 < largest < 0.1 and len(losses) == 5
    assert f"{name} changes logits by up to" in capsys.readouterr().err
    # Rows forgotten later are subtracted as they were stored, so the sums must be over the stored numbers.
    train = dataset.splits() == "train"
    stored, direct = Moments.load(tmp_path / "out/moments.safetensors"), Moments.of(narrowed.z()[train])
    torch.testing.assert_close(stored.S, direct.S, rtol=1e-12, atol=1e-12)


def test_rounding_above_the_bound_is_refused(dataset, tmp_path):
    sharp = build("resnet-small", 10, dataset.image_shape, seed=1)
    with torch.no_grad():
        sharp.head.weight.mul_(3000)
    refused = r"features\.dtype: bf16 changes logits by up to [\d.]+ and \d+ of 400 predictions in .*; use fp16"
    with pytest.raises(DataError, match=refused):
        extract(sharp, dataset, tmp_path / "out", tmp_path / "work", dataclasses.replace(SETTINGS, dtype="bf16"))
    assert not (tmp_path / "out").exists()


def test_values_beyond_fp16_are_refused(dataset, tmp_path):
    large = build("resnet-small", 10, dataset.image_shape, seed=1)
    large.backbone = torch.nn.Sequential(large.backbone, Times(1e6))
    with pytest.raises(DataError, match=r"fp16 changes logits by up to inf"):
        extract(large, dataset, tmp_path / "out", tmp_path / "work", dataclasses.replace(SETTINGS, dtype="fp16"))


class Times(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_a_new_head_supersedes_what_was_fetched_before_it(dataset, tmp_path):
    """With a smaller type the plan depends on the head, and the shards of the earlier head must not remain."""
    classifier = build("resnet-small", 10, dataset.image_shape, seed=1)
    settings = dataclasses.replace(SETTINGS, dtype="fp16")
    first, _ = extract_shards(classifier, dataset, tmp_path / "work", settings)
    other = build("resnet-small", 10, dataset.image_shape, seed=2)
    stored, _ = extract_shards(other, dataset, tmp_path / "work", settings)
    with torch.no_grad():
        classifier.head.weight.mul_(2)
    extract(classifier, dataset, tmp_path / "out", tmp_path / "work", settings)
    assert not first.exists() and stored.exists()


def test_the_number_of_threads_is_restored(dataset, classifier, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        extract(classifier, dataset, tmp_path / "out", tmp_path / "work", ExtractionSettings(900, 2000))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


MEMORY = """
import sys
from pathlib import Path
from expunge.data.dataset import Dataset
from expunge.features.extract import ExtractionSettings, extract
from expunge.models.zoo import build
dataset, root = Dataset(sys.argv[1]), Path(sys.argv[2])
classifier = build("resnet-small", 10, dataset.image_shape, seed=1)
extract(classifier, dataset, root / "out", root / "work", ExtractionSettings(100, 500))
status = Path("/proc/self/status").read_text()  # ru_maxrss would count what the parent held when it forked
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


@pytest.mark.slow
def test_memory_is_flat_as_rows_grow_tenfold(tmp_path):
    """Shards have 500 rows. Ten times as many rows add 35 MB of pictures and 23 MB of features on disk."""
    peaks = []
    for rows in (5_000, 50_000):
        source, root = tmp_path / f"{rows}.npz", tmp_path / str(rows)
        rng = np.random.default_rng(0)
        np.savez(source, images=rng.integers(0, 255, (rows, 28, 28), np.uint8), labels=np.arange(rows) % 10)
        prepare("npz", root / "dataset", path=source)
        command = [sys.executable, "-c", MEMORY, str(root / "dataset"), str(root)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        out = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
        peaks.append(float(out))
    assert peaks[1] < peaks[0] + 12, f"{peaks[0]:.0f} MB, then {peaks[1]:.0f} MB"


@pytest.mark.slow
@pytest.mark.parametrize("most", [5, 25])
def test_an_extraction_that_is_killed_at_random_moments_ends_with_the_same_bytes(dataset, tmp_path, most):
    """Processes are forked from one that has imported everything, so that kills hit the extraction and not imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.features.extraction_worker"])

    def start(root: Path) -> multiprocessing.Process:
        arguments = (str(dataset.directory), str(root))
        process = context.Process(target=extraction_worker.run, args=arguments)
        process.start()
        return process

    start(tmp_path / "warm").join()
    tick = time.monotonic()
    start(tmp_path / "whole").join()
    whole, seconds = contents(tmp_path / "whole/out"), time.monotonic() - tick
    rng, kills, rounds = random.Random(7), 0, 0
    while kills < most:
        root = tmp_path / f"round-{rounds}"
        rounds += 1
        for _ in range(4):
            process = start(root)
            process.join(rng.uniform(0.1, 1.0) * seconds)
            kills += process.is_alive()
            process.kill()
            process.join()
            if (root / "out").exists():  # If it exists, it must be complete.
                read_manifest(root / "out")
        process = start(root)
        process.join()
        assert process.exitcode == 0
        assert contents(root / "out") == whole
        assert not any((root / "work").iterdir())
