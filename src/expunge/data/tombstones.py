"""Tombstones: keyed digests of erased rows, so that an old commit or a restored backup cannot bring them back.

    data/tombstones/key                   32 random bytes, mode 0600
    data/tombstones/rows.safetensors      `ids` and `contents`, uint8 (n, 16): keyed BLAKE2b of each, sorted

Whoever has the key can test whether a given row was erased, but cannot compute ids or content from the digests; without
the key even the test is impossible. Neither git nor DVC tracks the folder, so neither restores an older state of it.
The environment variable `EXPUNGE_TOMBSTONES` names another folder, for clones that share one, or to keep it out of
backups.

An id alone is weaker evidence than content, because sources without ids number their rows; `hits` reports both.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from expunge.system.errors import DataError
from expunge.system.files import create_durable, write_durable

VARIABLE = "EXPUNGE_TOMBSTONES"
FOLDER, KEY, ROWS = "tombstones", "key", "rows.safetensors"
KEY_BYTES, BYTES = 32, 16

Digests = NDArray[np.void]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Hits:
    """Masks `(n,)` of rows whose content (`contents`) or whose id (`ids`) is that of an erased row."""

    contents: Mask
    ids: Mask

    @property
    def any(self) -> Mask:
        """Mask `(n,)` of rows that are hit by content or by id."""
        return self.contents | self.ids


@dataclass(frozen=True)
class Tombstones:
    """The tombstones of a folder. `ids` and `contents` are sorted arrays of void scalars of 16 bytes."""

    directory: Path
    key: bytes
    ids: Digests
    contents: Digests

    @classmethod
    def read(cls, directory: Path) -> Tombstones | None:
        """Read `directory`; None if nothing was erased yet. Raises DataError for a damaged folder."""
        if not (directory / ROWS).is_file():
            return None
        key = key_of(directory)
        try:
            arrays = load_file(directory / ROWS)
            ids, contents = (
                arrays[name].reshape(-1, BYTES).view(f"V{BYTES}").reshape(-1) for name in ("ids", "contents")
            )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as e:
            raise DataError(
                f"{directory / ROWS}: the tombstones cannot be read ({e}); restore the file, because without it "
                "erased rows could return"
            ) from e
        return cls(directory, key, ids, contents)

    @classmethod
    def near(cls, path: Path | str) -> Tombstones | None:
        """Read the tombstones that apply to the data at `path`; None if there are none.

        They are those of the nearest enclosing workspace that has any, so rows that were erased from a repository stay
        erased in the workspaces inside it. `EXPUNGE_TOMBSTONES` takes precedence.
        """
        if named := os.environ.get(VARIABLE):
            return cls.read(Path(named))
        for parent in Path(path).resolve().parents:
            if (home(parent) / ROWS).is_file():
                return cls.read(home(parent))
        return None

    @classmethod
    def open(cls, directory: Path, keep: bool = True) -> Tombstones:
        """Like `read`, but returns an empty set with a new key if there are none; `keep` writes that key to disk."""
        empty = np.empty(0, f"V{BYTES}")
        known = cls.read(directory)
        if known is None:
            at_hand = keep or (directory / KEY).is_file()
            known = cls(
                directory, key_of(directory, make=True) if at_hand else secrets.token_bytes(KEY_BYTES), empty, empty
            )
        return known

    def plus(self, ids: Iterable[str], contents: Iterable[bytes]) -> Tombstones:
        """Return the union of these tombstones and those of more rows, without writing it."""
        return Tombstones(
            self.directory,
            self.key,
            np.union1d(self.ids, self._digests(i.encode() for i in ids)),
            np.union1d(self.contents, self._digests(contents)),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def to_bytes(self) -> bytes:
        """Serialize `ids` and `contents`. The result is deterministic for given rows and key."""
        return save({name: getattr(self, name).view(np.uint8).reshape(-1, BYTES) for name in ("ids", "contents")})

    def write(self) -> None:
        """Write both lists of digests durably: they are on disk when this returns."""
        write_durable(self.directory / ROWS, self.to_bytes())

    def hits(self, ids: Sequence[str], contents: Sequence[bytes] | None = None) -> Hits:
        """Return which rows were erased, by id and, if the 16-byte content digests are given, by content."""
        known = np.zeros(len(ids), bool) if contents is None else self._known(contents, self._contents)
        return Hits(known, self._known((i.encode() for i in ids), self._ids))

    @cached_property
    def _ids(self) -> frozenset[bytes]:
        return frozenset(d.tobytes() for d in self.ids)

    @cached_property
    def _contents(self) -> frozenset[bytes]:
        return frozenset(d.tobytes() for d in self.contents)

    def _known(self, values: Iterable[bytes], erased: frozenset[bytes]) -> Mask:
        return np.array([mac(value, self.key) in erased for value in values], bool)

    def _digests(self, values: Iterable[bytes]) -> Digests:
        return np.frombuffer(b"".join(mac(value, self.key) for value in values), f"V{BYTES}")


def mac(value: bytes, key: bytes) -> bytes:
    """Return the keyed BLAKE2b digest of an id or of the content of a row, 16 bytes."""
    return hashlib.blake2b(value, key=key, digest_size=BYTES).digest()


def home(root: Path) -> Path:
    """The folder of the tombstones of the workspace `root`."""
    return Path(os.environ.get(VARIABLE) or root / "data" / FOLDER)


def refuse(tombstones: Tombstones | None, what: Path, ids: Sequence[str], contents: Sequence[bytes] | None) -> None:
    """Raise DataError if `what` contains a row that was erased.

    Such rows are not dropped on reading, because that would shift the positions of all later rows against features and
    splits. The data can be read again after a sweep.
    """
    if tombstones is None:
        return
    back = int(tombstones.hits(ids, contents).any.sum())
    if back:
        raise DataError(
            f"{what}: contains {back} erased rows again (from an old commit, a restored backup or an interrupted "
            "sweep); run `expunge sweep --apply` to remove them"
        )


def key_of(directory: Path, make: bool = False) -> bytes:
    """Return the key in `directory`; `make` writes a missing one. Raises DataError if it cannot be read."""
    path = directory / KEY
    if make and not path.exists():
        create_durable(path, secrets.token_bytes(KEY_BYTES))
    try:
        key = path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: the key of the tombstones cannot be read ({e.strerror}); restore the file") from None
    if len(key) != KEY_BYTES:
        raise DataError(f"{path}: has {len(key)} bytes, but a key has {KEY_BYTES}; restore the file")
    return key
