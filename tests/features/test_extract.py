"""Extraction: every row once, resumable, repairable, with the Moments of the training rows."""

import os
import random
import signal
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
from expunge.errors import DataError
from expunge.features.extract import Settings, extract, extract_shards
from expunge.features.store import FeatureStore
from expunge.files import read_manifest
from expunge.models.zoo import build

SETTINGS = Settings(batch_size=64, shard_rows=400)


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
    assert FeatureStore(store).column("sample_id").tolist() == dataset.sample_ids()


def test_moments_and_class_sums_are_of_training_rows(store, dataset):
    train = dataset.splits() == "train"
    z = torch.from_numpy(FeatureStore(store).z()[train])
    kept, direct = Moments.load(store / "moments.safetensors"), Moments.of(z)
    assert kept.n == int(train.sum())
    torch.testing.assert_close(kept.mean, direct.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(kept.cov(), direct.cov(), rtol=1e-9, atol=1e-11)
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


WORKER = """
import sys
from pathlib import Path
from expunge.data.dataset import Dataset
from expunge.features.extract import Settings, extract
from expunge.models.zoo import build
dataset = Dataset(sys.argv[1])
root = Path(sys.argv[2])
print("ready", flush=True)
classifier = build("resnet-small", 10, dataset.image_shape, seed=1)
extract(classifier, dataset, root / "out", root / "work", Settings(64, 400))
"""


def test_killed_at_random_moments_it_ends_with_the_same_bytes(store, dataset, tmp_path):
    rng = random.Random(7)
    command = [sys.executable, "-c", WORKER, str(dataset.directory), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(4):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
            process.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.7))
            process.send_signal(signal.SIGKILL)
        if (tmp_path / "out").exists():
            read_manifest(tmp_path / "out")
    subprocess.run(command, check=True, env=environment, capture_output=True)
    ours, theirs = contents(tmp_path / "out"), contents(store)
    assert ours == theirs
