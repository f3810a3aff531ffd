"""Which rows a promoted version had forgotten, so that a later one can be shown to have forgotten them too.

A request's digest names a set of rows and says nothing of what is in it. Whether one request covers another takes the
sets themselves: one file per request, sorted keyed digests of the rows' ids, and beside them the key. With the key one
can test whether an id is in a set, so the folder is data and lies below `data/`: it is neither committed nor logged.

    KEY, DIGEST.rows               of versions that were promoted: what must stay forgotten
    registered/DIGEST.rows         of versions that were registered: what a later promotion takes over
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from expunge.system.errors import DataError
from expunge.system.files import create_durable, write_durable

DIGEST_BYTES, KEY_BYTES = 16, 32
KEY, REGISTERED = "key", "registered"


class ForgottenRows:
    """A folder of sets of row ids, one per request, and beside it the set of the request that is being worked on."""

    def __init__(
        self,
        directory: Path | str,
        request: str | None = None,
        sample_ids: Iterable[str] = (),
        present: Iterable[str] | None = None,
    ) -> None:
        """`sample_ids`: what `request`, which is being worked on, forgets. `present`: all ids that the original was
        trained on, where that is known: what was forgotten before and is not among them, it never saw."""
        self.directory = Path(directory)
        self._request, self._ids = request, frozenset(sample_ids)
        self._present = None if present is None else frozenset(present)
        self._new_key = secrets.token_bytes(KEY_BYTES)  # until a first set is kept
        self._at_hand: tuple[bytes, bytes] | None = None  # the key, and the set under it

    def knows(self, request: str) -> bool:
        return self._read(request) is not None

    def keep(self, request: str) -> None:
        """Write the set of a request that `knows` into the folder; nothing where it is there already."""
        if not self._path(request).is_file():
            if not self.knows(request):
                raise DataError(f"request {request}: its rows are not at hand; run `dvc checkout` where it was made")
            self._keep_key()
            write_durable(self._path(request), self._own() if request == self._request else self._stored(request))

    def register(self) -> None:
        """Write the set of the request that is being worked on where `keep` finds it after other requests, too."""
        assert self._request is not None, "there is a request that is being worked on"
        if not self._path(self._request).is_file():
            self._keep_key()
            write_durable(self._registered(self._request), self._own())

    def requests(self) -> set[str]:
        """Digests of the requests whose sets lie in the folder."""
        return {f"sha256:{path.stem}" for path in self.directory.rglob("*.rows")}

    def covers(self, later: str, earlier: str) -> bool | None:
        """Whether request `later` forgets every row that `earlier` does; None where a set is not known here."""
        if later == earlier:
            return True
        own, other = self._read(later), self._read(earlier)
        return None if own is None or other is None else bool(np.isin(other, own).all())

    def mask(self, request: str, sample_ids: Sequence[str]) -> NDArray[np.bool_]:
        """Which of `sample_ids` belong to a request that `knows` said is known here: bool `(n,)`."""
        own, key = self._read(request), self._key()
        digests = np.frombuffer(b"".join(_digest(i, key) for i in sample_ids), dtype=f"V{DIGEST_BYTES}")
        return np.zeros(len(digests), dtype=bool) if own is None else np.isin(digests, own)

    def among(self, sample_ids: Sequence[str]) -> NDArray[np.bool_]:
        """Mask `(n,)` of the rows that any kept set holds."""
        kept, key = self._promoted(), self._key()
        return np.array([_digest(i, key) in kept for i in sample_ids], dtype=bool)

    def digests(self, sample_ids: Iterable[str]) -> list[bytes]:
        """Keyed digests of ids, 16 bytes each; the key is written where there is none yet, so that they can be made
        again."""
        self._keep_key()
        key = self._key()
        return [_digest(i, key) for i in sample_ids]

    def draws(self, names: Iterable[str], purpose: str) -> NDArray[np.uint64]:
        """Numbers `(n,)` uint64 that depend on name, purpose and the key, for whoever lacks the key at random; the key
        is written where there is none yet."""
        self._keep_key()
        key, person = self._key(), purpose.encode()  # a purpose of its own: these are no digests of rows
        drawn = [hashlib.blake2b(name.encode(), key=key, person=person, digest_size=8).digest() for name in names]
        return np.frombuffer(b"".join(drawn), dtype=">u8").astype(np.uint64)

    def fingerprint(self) -> str:
        """Names the key and gives nothing of it away; "" where there is none yet."""
        if not (self.directory / KEY).is_file():
            return ""
        return hashlib.blake2b(key=self._key(), person=b"fingerprint", digest_size=DIGEST_BYTES).hexdigest()

    def _promoted(self) -> set[bytes]:
        """Every digest of a promoted request."""
        requests = (f"sha256:{path.stem}" for path in sorted(self.directory.glob("*.rows")))
        return set().union(*(_split(self._stored(request)) for request in requests))

    def _read(self, request: str) -> NDArray[np.void] | None:
        known = request == self._request or self._file(request).is_file()
        content = self._own() if request == self._request else self._stored(request)
        return np.frombuffer(content, dtype=f"V{DIGEST_BYTES}") if known else None

    def _own(self) -> bytes:
        """The set of the request that is being worked on: what it forgets, and forgot before rows were erased."""
        key = self._key()
        if self._at_hand is None or self._at_hand[0] != key:
            own = {_digest(i, key) for i in self._ids}
            if self._request is not None:
                own |= _split(self._stored(self._request))
            if self._present is not None:
                own |= self._promoted() - {_digest(i, key) for i in self._present}
            self._at_hand = key, b"".join(sorted(own))
        return self._at_hand[1]

    def _stored(self, request: str) -> bytes:
        """What the folder holds of a request; b"" where it holds nothing."""
        path = self._file(request)
        if not path.is_file():
            return b""
        content = path.read_bytes()
        if not content or len(content) % DIGEST_BYTES:
            raise DataError(f"{path}: not a set of row digests; restore it from where it was made")
        return content

    def _key(self) -> bytes:
        path = self.directory / KEY
        if not path.is_file():
            return self._new_key
        key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise DataError(f"{path}: {len(key)} bytes where a key has {KEY_BYTES}; restore it")
        return key

    def _keep_key(self) -> None:
        """Write the key; where another process was first, its key counts."""
        if not (self.directory / KEY).is_file():
            create_durable(self.directory / KEY, self._new_key)

    def _file(self, request: str) -> Path:
        """Where the set of a request lies, if it does."""
        return path if (path := self._path(request)).is_file() else self._registered(request)

    def _registered(self, request: str) -> Path:
        return self.directory / REGISTERED / self._path(request).name

    def _path(self, request: str) -> Path:
        """Of a promoted version. Raises DataError for what is no digest."""
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", request):
            raise DataError(f"request {request!r}: not the digest of an erasure request (sha256:...)")
        return self.directory / f"{request.removeprefix('sha256:')}.rows"


def _digest(sample_id: str, key: bytes) -> bytes:
    return hashlib.blake2b(sample_id.encode(), key=key, digest_size=DIGEST_BYTES).digest()


def _split(digests: bytes) -> set[bytes]:
    return {digests[i : i + DIGEST_BYTES] for i in range(0, len(digests), DIGEST_BYTES)}
