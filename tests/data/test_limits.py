"""Input above the limits is refused before it is unpacked, by the size that its header states."""

from __future__ import annotations

import io
import resource
import struct
import time
import zipfile
import zlib
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from expunge.config import load_config
from expunge.data.corrections import read_labels
from expunge.data.images import decode
from expunge.data.prepare import prepare
from expunge.data.readers.npz import read_npz
from expunge.data.selectors import read_values
from expunge.data.split import split
from expunge.erasure.intake import take_in
from expunge.erasure.requests import Store
from expunge.system import limits
from expunge.system.errors import ConfigError, DataError
from expunge.system.limits import DEFAULTS
from tests.data.sources import prepared

ROOT = Path(__file__).parents[2]


def png(width: int, height: int) -> bytes:
    """Return a complete PNG of one colour. Its header states the true size, and its rows compress a thousandfold."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compressobj(1)
    packed = b"".join(rows.compress(bytes(1 + width)) for _ in range(min(height, 500))) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(12_000, 9_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_that_declares_too_many_pixels_is_refused_before_it_is_unpacked(width, height):
    assert width * height > DEFAULTS.pixels
    bomb, before, start = png(min(width, 60_000), height), resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    with pytest.raises(DataError, match=r"cat/7.png: .*pixels.*make it smaller, or remove it"):
        decode(bomb, "cat/7.png")
    assert time.perf_counter() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss < 50_000  # KiB


def test_a_large_picture_below_the_limit_is_read():
    assert decode(png(400, 300), "a").shape == (300, 400, 1)


def test_a_text_that_is_too_long_is_refused(tmp_path: Path):
    texts = ["short", "x" * (DEFAULTS.characters + 1), "y", "z"]
    pq.write_table(pa.table({"text": texts, "label": [0, 1, 0, 1]}), tmp_path / "t.parquet")
    with pytest.raises(
        DataError, match=r"row '1' has 1,000,001 characters, but at most 1,000,000 are allowed .*; divide it"
    ):
        prepare("text", tmp_path / "out", path=tmp_path / "t.parquet", test_fraction=0.5)
    assert not (tmp_path / "out").exists()


def test_an_archive_that_declares_more_than_the_limit_is_refused(tmp_path: Path):
    out = io.BytesIO()
    np.save(out, np.zeros((4, 2, 2), np.uint8))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", out.getvalue())
        archive.filelist[0].file_size = 1 << 40  # The archive's directory will state this size.
    with pytest.raises(DataError, match=r"x.npz: its arrays have 1,099,511,627,776 bytes, but at most"):
        read_npz(tmp_path / "x.npz")


def test_an_array_that_declares_more_than_it_holds_is_refused(tmp_path: Path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 8, 8), }"
    header += b" " * (118 - len(header)) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", npy)
    with pytest.raises(DataError, match=r"x.npz: not a readable .npz archive"):
        read_npz(tmp_path / "x.npz")


def test_a_list_that_is_too_large_is_refused(tmp_path: Path):
    with (tmp_path / "ids.txt").open("wb") as file:
        file.truncate(DEFAULTS.list_bytes + 1)  # The file is sparse and takes no disk space.
    with pytest.raises(
        DataError, match=r"ids.txt: has 268,435,457 bytes, but at most 268,435,456 are allowed .*; split the list"
    ):
        read_values(tmp_path / "ids.txt", "sample_id")
    same = pa.array(["a"] * (DEFAULTS.list_values + 1)).dictionary_encode()
    pq.write_table(pa.table({"sample_id": same}), tmp_path / "ids.parquet", compression="zstd")
    assert (tmp_path / "ids.parquet").stat().st_size < 10_000
    with pytest.raises(DataError, match=r"ids.parquet: lists 2,000,001 values, but at most 2,000,000 are allowed"):
        read_values(tmp_path / "ids.parquet", "sample_id")


@pytest.fixture
def params(tmp_path: Path, monkeypatch):
    """Return a function that puts limits into force through params.yaml, as every stage and command does."""
    monkeypatch.chdir(tmp_path)

    def put(**given: int) -> None:
        tree = yaml.safe_load((ROOT / "params.yaml").read_text())
        tree["limits"].update(given)
        Path("params.yaml").write_text(yaml.safe_dump(tree))
        load_config()

    return put


def test_params_set_the_limits(params, tmp_path: Path):
    params()
    assert limits.in_force() == DEFAULTS  # params.yaml states the defaults
    params(pixels=200, characters=20, archive_gib=1, list_mib=1, list_values=3)
    with pytest.raises(DataError, match=r"20 x 11 pixels, but at most 200 are allowed in all \(limits.pixels\)"):
        decode(png(20, 11), "a.png")
    pq.write_table(pa.table({"text": ["x" * 21, "y"], "label": [0, 1]}), "t.parquet")
    with pytest.raises(DataError, match=r"at most 20 are allowed \(limits.characters\)"):
        prepare("text", tmp_path / "out", path=tmp_path / "t.parquet", test_fraction=0.5)
    with zipfile.ZipFile("x.npz", "w") as archive:
        archive.writestr("x.npy", b"")
        archive.filelist[0].file_size = (1 << 30) + 1
    with pytest.raises(DataError, match=r"at most 1,073,741,824 are held in memory \(limits.archive_gib\)"):
        read_npz(Path("x.npz"))
    Path("ids.txt").write_text("a\nb\nc\nd\n")
    with pytest.raises(DataError, match=r"lists 4 values, but at most 3 are allowed \(limits.list_values\)"):
        read_values(Path("ids.txt"), "sample_id")
    Path("labels.csv").write_text("sample_id,label\n" + "".join(f"{i},x\n" for i in range(4)))
    with pytest.raises(DataError, match=r"lists 4 values, but at most 3"):
        read_labels(Path("labels.csv"))
    Path("ids.txt").write_text("a" * (1 << 20) + "b")
    with pytest.raises(DataError, match=r"at most 1,048,576 are allowed \(limits.list_mib\)"):
        read_values(Path("ids.txt"), "sample_id")
    params(pixels=220, list_values=4)
    decode(png(20, 11), "a.png"), read_labels(Path("labels.csv"))


@pytest.mark.parametrize(("key", "value"), [("pixels", 0), ("pixels", 10**9), ("list_mib", 1.5), ("rows", 3)])
def test_an_impossible_limit_is_named(params, key, value):
    with pytest.raises(ConfigError, match=f"limits.*{key}"):
        params(**{key: value})


def test_the_intake_of_a_request_keeps_the_limits_of_the_workspace(params, tmp_path: Path):
    params(list_values=1)
    limits.use(DEFAULTS)  # a new process
    Path("people.txt").write_text("a\nb\n")
    store = Store.open(f"sqlite:///{tmp_path / 'requests.db'}")
    day = date(2026, 1, 5)
    with pytest.raises(DataError, match=r"limits\.list_values"):
        take_in(store, subjects=Path("people.txt"), basis="", received=day, today=day, who="ann")
    assert not store.all()
    store.engine.dispose()


def test_more_than_half_of_the_rows_is_refused_unless_it_was_asked_for(tmp_path: Path):
    images, labels = np.arange(40, dtype=np.uint8).reshape(40, 1, 1), np.arange(40) % 4
    np.savez(tmp_path / "x.npz", x=images, y=labels, split=["train"] * 36 + ["test"] * 4)
    dataset = prepared(tmp_path, "npz", path=tmp_path / "x.npz")
    half = {"selector": "classes", "classes": [0, 1], "more_than_half": False}
    assert split(dataset, tmp_path / "half", **half)["forget_rows"] == 18
    for asked in ({"selector": "classes", "classes": [0, 1, 2]}, {"selector": "filter", "filter": "label != 3"}):
        with pytest.raises(DataError, match=r"forgets 27 of 36 training rows, .* set split.more_than_half: true"):
            split(dataset, tmp_path / "most", **asked, more_than_half=False)
        assert split(dataset, tmp_path / "most", **asked, more_than_half=True)["forget_rows"] == 27
