"""Read-only folders and small disks that only one process sees.

They need no rights and leave nothing. The process has no network either.
"""

from __future__ import annotations

import ctypes
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

NEW_MOUNTS, NEW_USER, NEW_NETWORK = 0x00020000, 0x10000000, 0x40000000
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
LIBC = ctypes.CDLL(None, use_errno=True)
FORBIDDEN, FAILED = 77, 1


def in_a_namespace(work: Callable[[], object]) -> None:
    """Run `work` in a process with mounts of its own. Its failure is raised here.

    Skips the test where the kernel forbids such mounts, as some containers do.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        output, status = "", 0
        try:
            _leave()
            work()
        except PermissionError as e:
            output, status = (str(e), FORBIDDEN) if e.filename == "mounts" else (traceback.format_exc(), FAILED)
        except BaseException:
            output, status = traceback.format_exc(), FAILED
        os.write(write, output.encode()[-20_000:])
        sys.stdout.flush()
        os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        output = pipe.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == FORBIDDEN:
        pytest.skip(f"no mounts of our own here: {output}")
    assert status == 0, output


def read_only(place: Path, yes: bool = True) -> None:
    """Make a folder and all below it read only, also for root, or writable again."""
    if yes:
        _mount(str(place), place, None, BIND)
        _mount("none", place, None, BIND | REMOUNT | READ_ONLY)
    elif LIBC.umount(os.fsencode(place)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place))


def small_disk(place: Path, size: int) -> None:
    """Mount an empty file system of `size` bytes, which lies in memory, at an existing folder."""
    _mount("tmpfs", place, "tmpfs", 0, f"size={size}")


def fill(place: Path, left: int) -> Path:
    """Write a file that leaves `left` bytes of the disk of `place` free, and return its path."""
    filler = place / ".filler"
    with filler.open("wb") as file:
        disk = os.statvfs(place)
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - left)
    return filler


def _leave() -> None:
    """Take mounts and a network of our own. As an ordinary user, become the root of a user namespace first."""
    user, group = os.geteuid(), os.getegid()
    flags = NEW_MOUNTS | NEW_NETWORK | (0 if user == 0 else NEW_USER)
    if LIBC.unshare(flags) != 0:
        raise PermissionError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "mounts")
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount("none", Path("/"), None, RECURSIVE | PRIVATE)


def _mount(source: str, place: Path, kind: str | None, flags: int, data: str | None = None) -> None:
    given = [None if v is None else v.encode() for v in (kind, data)]
    if LIBC.mount(source.encode(), os.fsencode(place), given[0], ctypes.c_ulong(flags), given[1]) != 0:
        raise PermissionError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "mounts")
