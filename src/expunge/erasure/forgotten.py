"""Which rows a promoted version had forgotten, so that a later one can be shown to have forgotten them too.

A request's digest names a set of rows and says nothing of what is in it. Whether one request covers another takes the
sets themselves: one file per request, sorted digests of the rows' ids. Whoever holds the dataset can tell which rows
these are, so the folder is data and lies below `data/`: it is neither committed nor logged.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from expunge.errors import DataError
from expunge.files import write_bytes

DIGEST_BYTES = 16


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
        self._at_hand: dict[str, bytes] = {}
        if request is not None:
            own = _split(_digests(sample_ids))
            if present is not None:
                own |= self._kept() - _split(_digests(present))
            self._at_hand[request] = b"".join(sorted(own))

    def knows(self, request: str) -> bool:
        return self._read(request) is not None

    def keep(self, request: str) -> None:
        """Write the set of the request that is being worked on into the folder; nothing where it is there already."""
        if not self._path(request).is_file():
            write_bytes(self._path(request), self._at_hand[request])

    def covers(self, later: str, earlier: str) -> bool | None:
        """Whether request `later` forgets every row that `earlier` does; None where a set is not known here."""
        if later == earlier:
            return True
        own, other = self._read(later), self._read(earlier)
        return None if own is None or other is None else bool(np.isin(other, own).all())

    def mask(self, request: str, sample_ids: Sequence[str]) -> NDArray[np.bool_]:
        """Which of `sample_ids` belong to a request that `knows` said is known here: bool `(n,)`."""
        own = self._read(request)
        digests = np.frombuffer(b"".join(_digest(i) for i in sample_ids), dtype=f"V{DIGEST_BYTES}")
        return np.zeros(len(digests), dtype=bool) if own is None else np.isin(digests, own)

    def among(self, sample_ids: Sequence[str]) -> NDArray[np.bool_]:
        """Mask `(n,)` of the rows that any kept set holds."""
        kept = self._kept()
        return np.array([_digest(i) in kept for i in sample_ids], dtype=bool)

    def _kept(self) -> set[bytes]:
        """Every digest in the folder."""
        requests = (f"sha256:{path.stem}" for path in sorted(self.directory.glob("*.rows")))
        sets = (self._read(request) for request in requests)
        return set().union(*(_split(s.tobytes()) for s in sets if s is not None))

    def _read(self, request: str) -> NDArray[np.void] | None:
        path = self._path(request)
        content = self._at_hand.get(request)
        if content is None:
            if not path.is_file():
                return None
            content = path.read_bytes()
            if not content or len(content) % DIGEST_BYTES:
                raise DataError(f"{path}: not a set of row digests; restore it from where it was made")
        return np.frombuffer(content, dtype=f"V{DIGEST_BYTES}")

    def _path(self, request: str) -> Path:
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", request):
            raise DataError(f"request {request!r}: not the digest of an erasure request (sha256:...)")
        return self.directory / f"{request.removeprefix('sha256:')}.rows"


def _digests(sample_ids: Iterable[str]) -> bytes:
    return b"".join(sorted({_digest(i) for i in sample_ids}))


def _digest(sample_id: str) -> bytes:
    return hashlib.blake2b(sample_id.encode(), digest_size=DIGEST_BYTES).digest()


def _split(digests: bytes) -> set[bytes]:
    return {digests[i : i + DIGEST_BYTES] for i in range(0, len(digests), DIGEST_BYTES)}
