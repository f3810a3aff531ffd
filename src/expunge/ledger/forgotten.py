"""The sets of rows that versions have forgotten, which show whether a later version has forgotten them too.

The digest of a request identifies a set of rows but does not reveal its members. To decide whether one request covers
another, the sets themselves are needed: one file per request holds the sorted keyed digests (BLAKE2b) of the row ids,
and the key lies beside them. Whoever has the key can test whether an id is in a set. The folder is therefore treated as
data, below `data/`, and is neither committed nor logged.

    key, DIGEST.rows               sets of promoted versions: these rows must stay forgotten
    registered/DIGEST.rows         sets of registered versions, copied to the folder above on promotion

A request that corrects labels removes no row. Its set holds a `label_pair` for each row and its old label: a later
version must not have been taught that label again.
"""

from __future__ import annotations

import hashlib
import json
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
    """A folder of sets of row ids, one per request, together with the set of the current request in memory."""

    def __init__(
        self,
        directory: Path | str,
        request: str | None = None,
        sample_ids: Iterable[str] = (),
        present: Iterable[str] | None = None,
    ) -> None:
        """Use the sets of forgotten rows in the folder `directory`.

        `sample_ids` are the rows that the current `request` forgets, or its label pairs. `present` are all ids and
        label pairs that the original was trained on, if known. Promoted sets may hold others; the original never saw
        them, so they count as forgotten by the current request too.
        """
        self.directory = Path(directory)
        self._request, self._ids = request, frozenset(sample_ids)
        self._present = None if present is None else frozenset(present)
        self._new_key = secrets.token_bytes(KEY_BYTES)  # used until the folder has a key
        self._at_hand: tuple[bytes, bytes] | None = None  # cache: the key, and the current set under it

    def knows(self, request: str) -> bool:
        """Return whether the set of `request` is known: it is the current request, or its set is in the folder."""
        return self._read(request) is not None

    def keep(self, request: str) -> None:
        """Write the set of a promoted request to the folder, if it is not there yet.

        Raises DataError if the set is not known.
        """
        if not self._path(request).is_file():
            if not self.knows(request):
                raise DataError(
                    f"request {request}: its rows are not known here; run `dvc checkout` in the workspace that made it"
                )
            self._keep_key()
            write_durable(self._path(request), self._own() if request == self._request else self._stored(request))

    def register(self) -> None:
        """Write the set of the current request to `registered/`, where `keep` finds it when another is current."""
        assert self._request is not None, "there is a request that is being worked on"
        if not self._path(self._request).is_file():
            self._keep_key()
            write_durable(self._registered(self._request), self._own())

    def requests(self) -> set[str]:
        """Return the digests of the requests whose sets are in the folder."""
        return {f"sha256:{path.stem}" for path in self.directory.rglob("*.rows")}

    def covers(self, later: str, earlier: str) -> bool | None:
        """Return whether request `later` forgets every row that `earlier` does; None if either set is not known."""
        if later == earlier:
            return True
        own, other = self._read(later), self._read(earlier)
        return None if own is None or other is None else bool(np.isin(other, own).all())

    def mask(self, request: str, sample_ids: Sequence[str]) -> NDArray[np.bool_]:
        """Return which of `sample_ids` belong to `request`, as bool `(n,)`; all False if its set is not known."""
        own, key = self._read(request), self._key()
        digests = np.frombuffer(b"".join(_digest(i, key) for i in sample_ids), dtype=f"V{DIGEST_BYTES}")
        return np.zeros(len(digests), dtype=bool) if own is None else np.isin(digests, own)

    def among(self, sample_ids: Sequence[str]) -> NDArray[np.bool_]:
        """Return which of `sample_ids` any promoted request forgot, as bool `(n,)`."""
        promoted, key = self._promoted(), self._key()
        return np.array([_digest(i, key) in promoted for i in sample_ids], dtype=bool)

    def digests(self, sample_ids: Iterable[str]) -> list[bytes]:
        """Return keyed digests of ids, 16 bytes each. A missing key is written first: they stay reproducible."""
        self._keep_key()
        key = self._key()
        return [_digest(i, key) for i in sample_ids]

    def draws(self, names: Iterable[str], purpose: str) -> NDArray[np.uint64]:
        """Return numbers `(n,)` uint64 that depend on name, purpose and key, and look random without the key.

        A missing key is written first.
        """
        self._keep_key()
        key, person = self._key(), purpose.encode()  # BLAKE2b's personalization separates them from row digests
        drawn = [hashlib.blake2b(name.encode(), key=key, person=person, digest_size=8).digest() for name in names]
        return np.frombuffer(b"".join(drawn), dtype=">u8").astype(np.uint64)

    def fingerprint(self) -> str:
        """Return a hex digest that identifies the key without revealing it; "" if there is no key yet."""
        if not (self.directory / KEY).is_file():
            return ""
        return hashlib.blake2b(key=self._key(), person=b"fingerprint", digest_size=DIGEST_BYTES).hexdigest()

    def _promoted(self) -> set[bytes]:
        """Return the row digests of all promoted requests."""
        requests = (f"sha256:{path.stem}" for path in sorted(self.directory.glob("*.rows")))
        return set().union(*(_split(self._stored(request)) for request in requests))

    def _read(self, request: str) -> NDArray[np.void] | None:
        known = request == self._request or self._file(request).is_file()
        content = self._own() if request == self._request else self._stored(request)
        return np.frombuffer(content, dtype=f"V{DIGEST_BYTES}") if known else None

    def _own(self) -> bytes:
        """Return the set of the current request.

        The set holds the request's rows now, its stored rows (some may have been erased since), and the promoted rows
        that the original never saw.
        """
        key = self._key()
        if self._at_hand is None or self._at_hand[0] != key:
            own = {_digest(i, key) for i in self._ids}
            if self._request is not None:
                own |= _split(self._stored(self._request))
            if self._present is not None and (promoted := self._promoted()):
                own |= promoted - {_digest(i, key) for i in self._present}
            self._at_hand = key, b"".join(sorted(own))
        return self._at_hand[1]

    def _stored(self, request: str) -> bytes:
        """Return the stored set of a request; b"" if there is none. Raises DataError for a damaged file."""
        path = self._file(request)
        if not path.is_file():
            return b""
        content = path.read_bytes()
        if not content or len(content) % DIGEST_BYTES:
            raise DataError(f"{path}: not a set of row digests; restore it from the workspace that wrote it")
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
        """Write the key unless there is one; `create_durable` keeps the key of a process that was faster."""
        if not (self.directory / KEY).is_file():
            create_durable(self.directory / KEY, self._new_key)

    def _file(self, request: str) -> Path:
        """Return the path of the promoted set of a request if it exists, else that of its registered set."""
        return path if (path := self._path(request)).is_file() else self._registered(request)

    def _registered(self, request: str) -> Path:
        return self.directory / REGISTERED / self._path(request).name

    def _path(self, request: str) -> Path:
        """Return the path of the set of a promoted request. Raises DataError if `request` is not a digest."""
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", request):
            raise DataError(f"request {request!r}: not the digest of an erasure request (sha256:...)")
        return self.directory / f"{request.removeprefix('sha256:')}.rows"


def label_pair(sample_id: str, class_name: str) -> str:
    """Return what a set of a correction holds in place of the id: the row was taught under this label."""
    return json.dumps([sample_id, class_name])


def label_pairs(sample_ids: Sequence[str], labels: Sequence[int], class_names: Sequence[str]) -> list[str]:
    """Return the `label_pair` of each row; `labels` are indices of `class_names`."""
    return [label_pair(i, class_names[label]) for i, label in zip(sample_ids, labels, strict=True)]


def _digest(sample_id: str, key: bytes) -> bytes:
    return hashlib.blake2b(sample_id.encode(), key=key, digest_size=DIGEST_BYTES).digest()


def _split(digests: bytes) -> set[bytes]:
    return {digests[i : i + DIGEST_BYTES] for i in range(0, len(digests), DIGEST_BYTES)}
