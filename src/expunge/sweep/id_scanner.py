"""Search text for ids: count every occurrence of any of many strings in one pass over the bytes.

Ids that consist of digits only, or are shorter than six bytes, occur by chance in many files. They are not searched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

WINDOW = 6
CHUNK = 8 << 20


class IdScanner:
    """A set of strings to search for. `distinct`: how many of the given strings are searched."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = {s.encode() for s in strings if len(s.encode()) >= WINDOW and not s.isdigit()}
        self.distinct = len(encoded)
        self._by_end: dict[bytes, list[bytes]] = {}
        # Lookup tables of the last two bytes of needles, and of the two bytes before them. They rule out most positions
        # with two vectorized lookups per byte.
        self._last, self._before = np.zeros(1 << 16, bool), np.zeros(1 << 16, bool)
        for needle in encoded:  # indexed by their ends: many ids share a prefix
            self._by_end.setdefault(needle[-WINDOW:], []).append(needle)
            self._last[_pair(needle[-2:])] = self._before[_pair(needle[-4:-2])] = True
        self._longest = max(map(len, encoded), default=0)

    def _ends(self, haystack: bytes) -> list[int]:
        """Return the positions at which a needle may end (exclusive)."""
        data = np.frombuffer(haystack, np.uint8)
        pairs = data[:-1].astype(np.uint16) << 8 | data[1:]
        last = np.flatnonzero(self._last[pairs[2:]]) + 2
        ends: list[int] = (last[self._before[pairs[last - 2]]] + 2).tolist()
        return ends

    def count(self, haystack: bytes) -> int:
        """Return how often any needle occurs in `haystack`.

        Numbers match as a whole: `row-0001` does not occur in `row-00012`.
        """
        if not self.distinct or len(haystack) < WINDOW:
            return 0
        found = 0
        for end in self._ends(haystack):
            if haystack[end - 1 : end].isdigit() and haystack[end : end + 1].isdigit():
                continue
            for needle in self._by_end.get(haystack[max(0, end - WINDOW) : end], ()):
                begin = end - len(needle)
                cut = needle[:1].isdigit() and haystack[max(0, begin - 1) : begin].isdigit()
                found += begin >= 0 and haystack[begin:end] == needle and not cut
        return found

    def in_file(self, path: Path) -> int:
        """Return how often any needle occurs in a file, which is read in chunks of 8 MiB."""
        found, tail = 0, b""
        with path.open("rb") as file:
            while block := file.read(CHUNK):
                piece = tail + block
                found += self.count(piece)
                tail = piece[-(self._longest + 1) :] if self._longest else b""
                found -= self.count(tail)  # the tail is counted again with the next block
        return found + self.count(tail)

    def below(self, *tops: Path) -> Iterator[tuple[Path, int]]:
        """Yield the files below `tops` that contain a needle, and the number of its occurrences."""
        if not self.distinct:
            return
        for top in tops:
            for path in sorted(top.rglob("*")) if top.is_dir() else ([top] if top.is_file() else []):
                if path.is_file() and not path.is_symlink() and (count := self.in_file(path)):
                    yield path, count


def _pair(two: bytes) -> int:
    return int.from_bytes(two, "big")
