"""Input above the limits is refused before it is unpacked, by the size that its header states."""

from __future__ import annotations

import io
import resource
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.data.images import decode
from expunge.data.limits import LIST_BYTES, LIST_VALUES, PIXELS, TEXT_CHARACTERS
from expunge.data.prepare import prepare
from expunge.data.readers.npz import read_npz
from expunge.data.selectors import read_values
from expunge.data.split import split
from expunge.system.errors import DataError
from tests.data.sources import prepared


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
    assert width * height > PIXELS
    bomb, before, start = png(min(width, 60_000), height), resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    with pytest.raises(DataError, match=r"cat/7.png: .*pixels.*make it smaller, or remove it"):
        decode(bomb, "cat/7.png")
    assert time.perf_counter() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss < 50_000  # KiB


def test_a_large_picture_below_the_limit_is_read():
    assert decode(png(400, 300), "a").shape == (300, 400, 1)


def test_a_text_that_is_too_long_is_refused(tmp_path: Path):
    texts = ["short", "x" * (TEXT_CHARACTERS + 1), "y", "z"]
    pq.write_table(pa.table({"text": texts, "label": [0, 1, 0, 1]}), tmp_path / "t.parquet")
    with pytest.raises(
        DataError, match=r"row '1' has 1,000,001 characters, but at most 1,000,000 are allowed; divide it"
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
        file.truncate(LIST_BYTES + 1)  # The file is sparse and takes no disk space.
    with pytest.raises(
        DataError, match=r"ids.txt: has 268,435,457 bytes, but at most 268,435,456 are allowed; split the list"
    ):
        read_values(tmp_path / "ids.txt", "sample_id")
    same = pa.array(["a"] * (LIST_VALUES + 1)).dictionary_encode()
    pq.write_table(pa.table({"sample_id": same}), tmp_path / "ids.parquet", compression="zstd")
    assert (tmp_path / "ids.parquet").stat().st_size < 10_000
    with pytest.raises(DataError, match=r"ids.parquet: lists 2,000,001 values, but at most 2,000,000 are allowed"):
        read_values(tmp_path / "ids.parquet", "sample_id")


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
