"""Test writes that the disk refuses: the old content stays, and one line says why the write failed and what to do.

A process limits the size of its own files (RLIMIT_FSIZE), which needs no privileges. The tests with a full disk are
in tests/stages/test_disk.py.
"""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from expunge.system import storage
from expunge.system.arrays import new_array
from expunge.system.errors import StorageError
from expunge.system.files import create_durable, staged_dir, write_bytes, write_durable, write_manifest, write_texts


def limited(work: Callable[[], object], size: int) -> None:
    """Run `work` in a child process in which no file may grow beyond `size` bytes, and assert that it succeeds."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def writes(place: Path) -> dict[str, Callable[[bytes], object]]:
    def directory(content: bytes) -> None:
        with staged_dir(place / "directory") as tmp:
            (tmp / "file").write_bytes(content)
            write_manifest(tmp, "test")

    return {
        "file": lambda content: write_bytes(place / "file", content),
        "durable": lambda content: write_durable(place / "durable", content),
        "new": lambda content: create_durable(place / "new", content),
        "texts": lambda content: write_texts(place / "texts", {"a": "a", "b": content.decode()}),
        "directory": directory,
    }


@pytest.mark.parametrize("name", ["file", "durable", "new", "texts", "directory"])
@pytest.mark.parametrize("there", [False, True])
def test_what_is_written_is_whole_or_as_it_was(name, there, tmp_path):
    write = writes(tmp_path)[name]
    if there and name != "new":
        write(b"old")
    before = contents(tmp_path, ["."])

    def work() -> None:
        with pytest.raises(StorageError, match=rf"{tmp_path}.*: cannot be used: .*raise the limit"):
            write(b"n" * 50_000)

    limited(work, 20_000)
    assert contents(tmp_path, ["."]) == before and not left_behind(tmp_path)
    write(b"n" * 50_000)
    assert any(len(c) == 50_000 for c in contents(tmp_path, ["."]).values())


def test_another_process_may_have_made_the_file_meanwhile(tmp_path):
    """The other process's file must not be removed."""
    assert create_durable(tmp_path / "file", b"theirs") and not create_durable(tmp_path / "file", b"mine")
    assert (tmp_path / "file").read_bytes() == b"theirs" and not left_behind(tmp_path)


def test_a_mapped_array_takes_its_space_at_once(tmp_path):
    """If the space were missing later, the system would kill the process with SIGBUS."""

    def work() -> None:
        with pytest.raises(OSError):
            new_array(tmp_path / "a.npy", np.dtype(np.float32), (1000, 100))

    limited(work, 20_000)
    new_array(tmp_path / "b.npy", np.dtype(np.float32), (1000, 100))[:] = 1
    stat = (tmp_path / "b.npy").stat()
    assert stat.st_blocks * 512 >= stat.st_size and np.load(tmp_path / "b.npy").sum() == 1e5


def test_what_libraries_say_of_a_full_disk_is_understood(tmp_path):
    def by_safetensors() -> None:
        save_file({"a": torch.zeros(100_000)}, tmp_path / "a.safetensors")

    def by_arrow() -> None:
        pq.write_table(pa.table({"a": np.random.default_rng(0).random(100_000)}), tmp_path / "a.parquet")

    def by_sqlite() -> None:
        with closing(sqlite3.connect(tmp_path / "a.db")) as db:
            db.execute("CREATE TABLE t (x BLOB)")
            db.execute("INSERT INTO t VALUES (zeroblob(100000))")
            db.commit()

    def by_numpy() -> None:
        np.save(tmp_path / "a.npy", np.zeros(100_000))

    for library in (by_safetensors, by_arrow, by_sqlite, by_numpy):

        def work(library: Callable[[], None] = library) -> None:
            with pytest.raises(Exception) as e:
                library()
            assert storage.reason(e.value), repr(e.value)

        limited(work, 20_000)


def test_other_errors_are_not_called_failures_of_the_disk():
    assert storage.reason(ValueError("the matrix has no full rank")) is None
    assert storage.reason(PermissionError(errno.EACCES, "connecting")) is None
    with pytest.raises(KeyError), storage.writing("somewhere"):
        raise KeyError("x")


def left_behind(workspace: Path) -> list[Path]:
    return [p for p in workspace.rglob("*") if p.name.endswith((".tmp", ".old"))]


def contents(workspace: Path, outs: list[str]) -> dict[str, bytes]:
    files = [p for out in outs for p in ([workspace / out, *(workspace / out).rglob("*")]) if p.is_file()]
    return {p.relative_to(workspace).as_posix(): p.read_bytes() for p in files}
