"""Failures of the disk in words: a full disk, a folder that cannot be written.

The libraries that write for us report them in different ways; a user needs the path, the reason and the way out in one
line.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from expunge.system.errors import ExpungeError, StorageError

REASONS = {
    errno.ENOSPC: "the disk is full; free some space and run again",
    errno.EDQUOT: "the disk quota is used up; free some space and run again",
    errno.EFBIG: "the file is larger than may be written here; raise the limit (`ulimit -f`) and run again",
    errno.EROFS: "the file system is read only; mount it for writing and run again",
    errno.EACCES: "this user has no permission; change the owner or the mode and run again",
    errno.EPERM: "this user has no permission; change the owner or the mode and run again",
    errno.EIO: "the disk reports an input or output error; check it and run again",
}
NEED_A_NAME = (errno.EACCES, errno.EPERM)  # without a file name these are about sockets or processes
# What safetensors, pyarrow, numpy and SQLite say where they raise no OSError with a number.
WORDS = {
    "no space left on device": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "requested and": errno.ENOSPC,  # numpy: "1000 requested and 24 written"
    "file too large": errno.EFBIG,
    "read-only file system": errno.EROFS,
    "readonly database": errno.EROFS,
    "disk i/o error": errno.EIO,
}


def reason(error: BaseException) -> str | None:
    """Return why the disk made `error` happen and what to do; None if the disk was not the cause.

    The errors from which it was raised (`__cause__`) are looked at too.
    """
    for e in _chain(error):
        if isinstance(e, OSError) and e.errno in REASONS and (e.filename is not None or e.errno not in NEED_A_NAME):
            return REASONS[e.errno]
        text = str(e).lower()
        for word, number in WORDS.items():
            if word in text:
                return REASONS[number]
    return None


def words(error: BaseException, place: Path | str) -> str | None:
    """Return `PATH: cannot be used: REASON` for an error of the disk, else None.

    PATH is the file that the system names. Many errors name none; then it is `place`.
    """
    why = reason(error)
    named = next((e.filename for e in _chain(error) if isinstance(e, OSError) and e.filename is not None), place)
    return None if why is None else f"{named}: cannot be used: {why}"


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Raise StorageError, in the words above, if the disk makes the body fail to write `path`.

    Other errors pass unchanged.
    """
    try:
        yield
    except ExpungeError:
        raise
    except Exception as e:
        if (line := words(e, path)) is None:
            raise
        raise StorageError(line) from e


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__
