"""Search for a pattern in every byte of files and of the archives in them, independently of the search of the sweep."""

from __future__ import annotations

import gzip
import io
import re
import sqlite3
import subprocess
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ZSTD = b"\x28\xb5\x2f\xfd"


def found(pattern: re.Pattern[bytes], *tops: Path) -> set[str]:
    """Return the files below `tops` whose name or content matches `pattern`, also in nested archives."""
    hits = set()
    for top in tops:
        for path in sorted(top.rglob("*")):
            # Links are not followed, because their targets are searched themselves.
            if path.is_symlink() or not path.is_file():
                continue
            if pattern.search(path.name.encode()) or any(pattern.search(c) for c in contents(path)):
                hits.add(path.relative_to(top.parent).as_posix())
        if (top / ".git").is_dir():
            hits |= {f"{top.name}/.git {name}" for name in _git(top, pattern)}
    return hits


def contents(path: Path) -> Iterator[bytes]:
    raw = path.read_bytes()
    yield raw
    if raw[:16] == b"SQLite format 3\0":
        yield from _sqlite(path)
    yield from unpacked(raw)


def unpacked(raw: bytes) -> Iterator[bytes]:
    """Yield the unpacked contents of `raw`, also of archives inside archives."""
    inner: list[bytes] = []
    try:
        if raw[:4] == b"PAR1":
            for column in pq.read_table(io.BytesIO(raw)).itercolumns():
                values = column.to_pylist()
                inner += [b"\0".join(v if isinstance(v, bytes) else str(v).encode() for v in values)]
        elif raw[:4] == b"PK\3\4":
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                for name in archive.namelist():
                    inner.append(archive.read(name))
                    # numpy stores text as UTF-32, whose zero bytes would hide ASCII text from the pattern.
                    inner.append(inner[-1].replace(b"\0\0\0", b""))
        elif raw[:2] == b"\x1f\x8b":
            inner.append(gzip.decompress(raw))
        elif raw[:4] == ZSTD:
            inner.append(pa.input_stream(io.BytesIO(raw), compression="zstd").read())
        elif raw[:1] == b"\x78":
            inner.append(zlib.decompress(raw))
    except (OSError, zlib.error, pa.ArrowException, zipfile.BadZipFile, EOFError):
        return
    for piece in inner:
        yield piece
        yield from unpacked(piece)


def _sqlite(path: Path) -> Iterator[bytes]:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
            for row in connection.execute(f'select * from "{table}"'):
                for value in row:
                    if isinstance(value, bytes):
                        yield value
                        yield from unpacked(value)
                    elif value is not None:
                        yield str(value).encode()


def _git(root: Path, pattern: re.Pattern[bytes]) -> Iterator[str]:
    """Yield the names of all Git objects that contain `pattern`, including packed and unreachable ones."""
    listed = subprocess.run(
        ["git", "cat-file", "--batch-check", "--batch-all-objects"], cwd=root, capture_output=True, check=True
    ).stdout.decode()
    for line in listed.splitlines():
        name, kind, _ = line.split()
        content = subprocess.run(["git", "cat-file", kind, name], cwd=root, capture_output=True, check=True).stdout
        if pattern.search(content) or any(pattern.search(c) for c in unpacked(content)):
            yield name
