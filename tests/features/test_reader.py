"""The reader decodes pictures of every kind in parallel and in order, and names the ones it refuses."""

import dataclasses
import itertools
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from expunge.data.dataset import Dataset
from expunge.data.images import decode
from expunge.data.prepare import prepare
from expunge.features.extract import ExtractionSettings, extract
from expunge.features.plan import FeatureShard
from expunge.features.reader import Reader
from expunge.features.store import FeatureStore
from expunge.models.zoo import build
from expunge.system.errors import DataError
from expunge.system.files import read_json, write_manifest

SETTINGS = ExtractionSettings(batch_size=8, shard_rows=20)


def picture(rng, mode, size):
    """Return a picture of smooth noise, which JPEG changes little."""
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 4), np.uint8), "RGBA").resize(size, Image.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(small.convert("L")).astype(np.uint16) * 257)
    return small.convert("P", palette=Image.ADAPTIVE) if mode == "P" else small.convert(mode)


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Return a dataset of 42 pictures of two classes and several sizes.

    They are grey, colour, CMYK, 16-bit, palette, transparent and rotated.
    """
    root, rng = tmp_path_factory.mktemp("odd"), np.random.default_rng(0)
    kinds = itertools.cycle(
        [("L", "png"), ("RGB", "jpg"), ("CMYK", "jpg"), ("I;16", "png"), ("P", "png"), ("RGBA", "png")]
    )
    for i, (mode, suffix) in zip(range(36), kinds, strict=False):
        image = picture(rng, mode, (20 + i % 5, 24))
        save(image, root / "images" / "ab"[i % 2] / f"{mode.replace(';', '-')}-{i:02d}.{suffix}")
    for i in range(6):
        exif = Image.Exif()
        exif[0x0112] = 6  # The reader must rotate it by 90 degrees.
        save(picture(rng, "RGB", (30, 20)), root / "images/a" / f"turned-{i}.jpg", exif=exif)
    prepare("image-folder", root / "dataset", path=root / "images")
    return Dataset(root / "dataset")


@pytest.fixture(scope="module")
def same_size(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("same"), np.random.default_rng(1)
    for i in range(90):
        save(picture(rng, "RGB", (24, 20)), root / "images" / "ab"[i % 2] / f"{i:02d}.jpg", quality=90)
    prepare("image-folder", root / "dataset", path=root / "images")
    return Dataset(root / "dataset")


def test_pictures_of_every_mode_and_size_pass_through_the_whole_stage(odd, tmp_path):
    assert odd.image_shape is None
    classifier = build("resnet-small", 2, (24, 24, 3), seed=1)
    extract(classifier, odd, tmp_path / "out", tmp_path / "work", SETTINGS)
    z = FeatureStore(tmp_path / "out").z()
    images = odd.images()
    turned = odd.sample_ids().index("a/turned-0.jpg")
    assert images[turned].shape == (30, 20, 3)
    with torch.inference_mode():
        alone = torch.cat([classifier.features([image]) for image in images]).numpy()
    np.testing.assert_allclose(z, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_keep_the_order(same_size, threads):
    reader = Reader(same_size, None, batch_size=40, threads=threads)
    shards = [FeatureShard(0, 0, 50), FeatureShard(1, 50, 90)]
    batches = list(reader.batches(shards))
    assert [(b.shard.index, b.first, len(b.images)) for b in batches] == [(0, 0, 40), (0, 40, 10), (1, 50, 40)]
    np.testing.assert_array_equal(torch.cat([b.images for b in batches]), same_size.images())
    assert all(b.decode_s > 0 and b.read_s >= 0 for b in batches)


def test_a_reader_that_is_closed_early_ends_its_threads(same_size):
    before = threading.active_count()
    batches = Reader(same_size, None, batch_size=10, threads=2).batches([FeatureShard(0, 0, 90)])
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def damage(dataset, directory, row, content):
    """Return a copy of the dataset in which `content` changed one picture, with a manifest that fits the change."""
    directory.mkdir()
    for file in dataset.directory.iterdir():
        if file.suffix != ".parquet" or not file.name.startswith("part-"):
            (directory / file.name).write_bytes(file.read_bytes())
    (shard,) = dataset.directory.glob("part-*.parquet")
    table = pq.read_table(shard)
    images = table["image"].to_pylist()
    images[row] = content(images[row])
    column = table.schema.get_field_index("image")
    table = table.set_column(column, table.schema.field(column), pa.array(images, pa.binary()))
    pq.write_table(table, directory / shard.name)
    manifest = read_json(directory / "manifest.json")
    (directory / "manifest.json").unlink()
    fields = {k: v for k, v in manifest.items() if k not in ("schema", "producer", "files")}
    write_manifest(directory, manifest["producer"], rows={shard.name: len(table)}, **fields)
    return Dataset(directory)


@pytest.mark.parametrize(
    "content", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"\0" * len(b)], ids=["empty", "cut", "zeros"]
)
@pytest.mark.parametrize("fixture", ["odd", "same_size"])
def test_a_bad_picture_is_refused_by_name(fixture, content, request, tmp_path):
    dataset = request.getfixturevalue(fixture)
    broken = damage(dataset, tmp_path / "dataset", 33, content)
    classifier = build("resnet-small", 2, (24, 24, 3), seed=1)
    with pytest.raises(DataError, match=dataset.sample_ids()[33]):
        extract(classifier, broken, tmp_path / "out", tmp_path / "work", SETTINGS)
    assert not (tmp_path / "out").exists()
    # Shards before it are kept, so that extraction need not start again once the data are repaired.
    assert len(list(next((tmp_path / "work").iterdir()).glob("part-*.json"))) == 1


def test_the_reader_decodes_as_the_dataset_does(odd):
    file = odd.table(["sample_id"])["sample_id"][0].as_py()
    raw = next(odd.iter_tables(1))[1]["image"][0].as_py()
    np.testing.assert_array_equal(decode(raw, file), odd.images(np.array([0]))[0])


def test_texts_and_lists_are_prepared_beside_the_model(odd):
    def count(images):
        return torch.tensor([[image.size] for image in images])

    batches = list(Reader(odd, count, batch_size=40, threads=2).batches([FeatureShard(0, 0, 42)]))
    assert torch.cat([b.images for b in batches]).flatten().tolist() == [i.size for i in odd.images()]
    assert dataclasses.is_dataclass(batches[0])
