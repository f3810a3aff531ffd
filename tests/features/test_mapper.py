"""The mapper gives the model's own features, even if memory runs out during the extraction."""

import pytest
import torch
from torch import nn

from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.features.extract import ExtractionSettings, extract
from expunge.features.mapper import Mapper
from expunge.features.store import FeatureStore
from expunge.models.zoo import build
from expunge.system.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "dataset"
    prepare("digits", directory)
    return Dataset(directory)


class Small(nn.Module):
    """A backbone on a device whose memory holds `most` rows, and only `then` rows from call number `later` on."""

    def __init__(self, backbone, most, later=10**9, then=1):
        super().__init__()
        self.backbone, self.most, self.later, self.then, self.calls = backbone, most, later, then, 0

    def forward(self, x):
        self.calls += 1
        most = self.most if self.calls < self.later else self.then
        if len(x) > most:
            raise torch.OutOfMemoryError(f"tried to allocate {len(x)} rows")
        return self.backbone(x)


def classifier_of(dataset, **memory):
    classifier = build("resnet-small", 10, dataset.image_shape, seed=1)
    if memory:
        classifier.backbone = Small(classifier.backbone, **memory)
    return classifier


def fetch(classifier, dataset, root, **settings):
    settings = {"batch_size": 64, "shard_rows": 600} | settings
    extract(classifier, dataset, root / "out", root / "work", ExtractionSettings(**settings))
    return FeatureStore(root / "out")


def test_out_of_memory_halves_the_batch_once_and_goes_on(dataset, tmp_path, capsys):
    whole = fetch(classifier_of(dataset), dataset, tmp_path / "whole")
    classifier = classifier_of(dataset, most=40)
    z = fetch(classifier, dataset, tmp_path / "small").z()
    torch.testing.assert_close(torch.from_numpy(z), torch.from_numpy(whole.z()), rtol=1e-5, atol=1e-6)
    output = capsys.readouterr().err
    assert output.count("out of memory") == 1 and "at 64 rows; continuing with 32" in output
    # Only one attempt fails, because later batches are halved from the start.
    assert classifier.backbone.calls == 1 + sum(-(-n // 32) for n in (600 // 64 * [64] + [24]) * 2 + 9 * [64] + [21])


def test_each_shortage_has_its_own_warning(dataset, tmp_path, capsys):
    fetch(classifier_of(dataset, most=64, later=9, then=16), dataset, tmp_path)
    output = capsys.readouterr().err
    assert [line for line in output.splitlines() if "warning" in line] == [
        "extract: warning: cpu is out of memory at 64 rows; continuing with 32 rows",
        "extract: warning: cpu is out of memory at 32 rows; continuing with 16 rows",
    ]


def test_a_picture_that_never_fits(dataset, tmp_path):
    with pytest.raises(DataError, match="cpu has too little memory for a single image"):
        fetch(classifier_of(dataset, most=0), dataset, tmp_path)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_features_under_autocast_are_close_and_not_equal(dataset, tmp_path, precision):
    classifier = classifier_of(dataset)
    exact = fetch(classifier, dataset, tmp_path / "exact").z()
    near = fetch(classifier, dataset, tmp_path / "near", precision=precision).z()
    assert (near != exact).any()
    torch.testing.assert_close(torch.from_numpy(near), torch.from_numpy(exact), rtol=0.1, atol=0.1)


def test_pieces_of_a_compiled_model_keep_one_shape(dataset):
    """The last batch is padded and its result cut. A plain function replaces the compiled model."""
    mapper = Mapper(classifier_of(dataset), ExtractionSettings(batch_size=32, shard_rows=600))
    shapes = []

    def compiled(pixels):
        shapes.append(len(pixels))
        return mapper.classifier.backbone(pixels)

    mapper._compiled = compiled
    images = torch.from_numpy(dataset.images()[:20].copy())
    torch.testing.assert_close(mapper.features(images), mapper.classifier.features(images), rtol=1e-5, atol=1e-6)
    assert shapes == [32]


def test_a_missing_gpu_is_refused_where_the_work_runs(monkeypatch):
    from expunge.config import Features

    features = Features(64, 600, "fp32", "fp32", "cuda", "auto", "penultimate")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"features\.device is cuda"):
        ExtractionSettings.of(features)
    assert ExtractionSettings.of(features, elsewhere=True).device == "cuda"
