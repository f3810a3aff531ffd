"""Ids in text: every occurrence of any of many strings, in one pass over the bytes.

An id that is only a number, or shorter than six characters, occurs by chance everywhere; it is not looked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

WINDOW = 6
CHUNK = 8 << 20


class Needles:
    """Strings to look for. `distinct`: how many of those given are worth it."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = {s.encode() for s in strings if len(s.encode()) >= WINDOW and not s.isdigit()}
        self.distinct = len(encoded)
        self._by_end: dict[int, list[bytes]] = {}
        for needle in encoded:  # the end of an id tells more than its beginning, which many share
            self._by_end.setdefault(_number(needle[-WINDOW:]), []).append(needle)
        self._ends = np.array(sorted(self._by_end), dtype=np.uint64)
        self._longest = max(map(len, encoded), default=0)

    def count(self, haystack: bytes) -> int:
        """How many times any needle occurs in `haystack`, numbers as a whole: `row-0001` is not in `row-00012`."""
        if not self.distinct or len(haystack) < WINDOW:
            return 0
        data = np.frombuffer(haystack, np.uint8)
        windows = np.zeros(len(data) - WINDOW + 1, np.uint64)
        for i in range(WINDOW):
            windows = (windows << np.uint64(8)) | data[i : len(data) - WINDOW + 1 + i]
        at = np.searchsorted(self._ends, windows)
        candidates = np.flatnonzero(self._ends[np.minimum(at, len(self._ends) - 1)] == windows)
        found = 0
        for start in candidates.tolist():
            end = start + WINDOW
            if haystack[end - 1 : end].isdigit() and haystack[end : end + 1].isdigit():
                continue
            for needle in self._by_end[int(windows[start])]:
                begin = end - len(needle)
                cut = needle[:1].isdigit() and haystack[max(0, begin - 1) : begin].isdigit()
                found += begin >= 0 and haystack[begin:end] == needle and not cut
        return found

    def in_file(self, path: Path) -> int:
        """How many times any occurs in a file, read in pieces."""
        found, tail = 0, b""
        with path.open("rb") as file:
            while block := file.read(CHUNK):
                piece = tail + block
                found += self.count(piece)
                tail = piece[-(self._longest + 1) :] if self._longest else b""
                found -= self.count(tail)  # it is counted again with what follows
        return found + self.count(tail)

    def below(self, *tops: Path) -> Iterator[tuple[Path, int]]:
        """Files below folders in which any occurs, and how often."""
        if not self.distinct:
            return
        for top in tops:
            for path in sorted(top.rglob("*")) if top.is_dir() else ([top] if top.is_file() else []):
                if path.is_file() and not path.is_symlink() and (count := self.in_file(path)):
                    yield path, count


def _number(six: bytes) -> int:
    return int.from_bytes(six, "big")
