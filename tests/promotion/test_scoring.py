"""Test `score_parquet`, which scores the images of a Parquet file with a served classifier."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from expunge.promotion.scoring import score_parquet
from expunge.serving.servable import Contract, Servable
from expunge.system.errors import DataError
from tests.served_models import CLASSES, pictures, write_model


@pytest.fixture(scope="module")
def servable(tmp_path_factory):
    classifier = write_model(tmp_path_factory.mktemp("model"))
    return Servable(classifier.eval(), None, Contract((12, 10), CLASSES))


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="PNG")
    return out.getvalue()


def write(path, images, **columns):
    pq.write_table(pa.table({"image": images, **columns}), path)
    return path


def test_every_row_has_its_answer_in_order(servable, tmp_path):
    images = pictures(600)
    ids = [f"row {i}" for i in range(600)]
    source = write(tmp_path / "in.parquet", [png(i) for i in images], id=ids, unused=list(range(600)))
    assert score_parquet(servable, source, tmp_path / "out" / "answers.parquet", "models:/m/1") == 600
    table = pq.read_table(tmp_path / "out" / "answers.parquet")
    assert table.column_names == ["id", "predicted", "probability", "probabilities"] and table["id"].to_pylist() == ids
    expected = servable.probabilities(images)
    found = np.array(table["probabilities"].to_pylist(), np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert table["predicted"].to_pylist() == [CLASSES[c] for c in expected.argmax(1)]
    np.testing.assert_allclose(table["probability"].to_numpy(), expected.max(1), atol=1e-6)
    metadata = table.schema.metadata
    assert metadata[b"classes"].decode().split("\n") == list(CLASSES) and metadata[b"model"] == b"models:/m/1"


def test_images_may_be_structs_and_need_no_id(servable, tmp_path):
    images = pictures(3)
    source = write(tmp_path / "in.parquet", [{"bytes": png(i), "path": None} for i in images])
    score_parquet(servable, source, tmp_path / "out.parquet", "m")
    assert pq.read_table(tmp_path / "out.parquet").column_names == ["predicted", "probability", "probabilities"]


def test_an_empty_file_gives_an_empty_answer(servable, tmp_path):
    source = write(tmp_path / "in.parquet", pa.array([], pa.binary()))
    assert score_parquet(servable, source, tmp_path / "out.parquet", "m") == 0
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (None, "row 1 is empty"),
        (b"no picture", "row 1: not a readable image"),
        (png(np.zeros((9, 9), np.uint8)), r"row 1: an image \(9, 9, 1\); the model takes \(12, 10\)"),
    ],
)
def test_what_cannot_be_scored_is_named_and_nothing_is_left(servable, tmp_path, row, why):
    source = write(tmp_path / "in.parquet", [png(pictures(1)[0]), row])
    with pytest.raises(DataError, match=why):
        score_parquet(servable, source, tmp_path / "out.parquet", "m")
    assert [p.name for p in tmp_path.iterdir()] == ["in.parquet"]


def test_files_that_are_none_are_named(servable, tmp_path):
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is not a complete Parquet file"):
        score_parquet(servable, tmp_path / "in.parquet", tmp_path / "out.parquet", "m")
    pq.write_table(pa.table({"picture": [b""]}), tmp_path / "in.parquet")
    with pytest.raises(DataError, match="no column 'image', and the model takes images"):
        score_parquet(servable, tmp_path / "in.parquet", tmp_path / "out.parquet", "m")
