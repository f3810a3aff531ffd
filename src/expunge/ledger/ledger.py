"""A hash-chained, append-only ledger of decisions and of the events of erasure requests, one JSON object per line.

    {"seq": 2, "time": "...", "kind": "promotion", "facts": {...}, "previous": "sha256:...", "hash": "sha256:..."}

`hash` covers every other field, and `previous` is the hash of the preceding entry, so changing, removing, moving or
inserting an entry breaks the chain. A chain alone cannot show that its newest entries were removed; the signed head
(`expunge.ledger.signed_head`) and hashes stored elsewhere (`Ledger.verify`) do.

Entries are permanent, so they contain no ids of rows or of people.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expunge.ledger.keys import PublicKey, SigningKey, public_key, signing_key
from expunge.ledger.signed_head import HeadFiles
from expunge.system.errors import LedgerError
from expunge.system.files import digest_of, sync

GENESIS = "sha256:" + "0" * 64
SWEEP = "sweep"  # entry kind of a sweep; its facts name the original model that was trained on the erased rows
# Keys that the facts of an entry must not have, at any depth.
PERSONAL = frozenset({"sample_id", "sample_ids", "subject", "subjects", "row", "rows"})


@dataclass(frozen=True)
class Entry:
    """One entry of the ledger. `time` is UTC in ISO 8601; `facts` hold JSON values."""

    seq: int
    time: str
    kind: str
    facts: Mapping[str, Any]
    previous: str
    hash: str

    @classmethod
    def after(cls, last: Entry | None, kind: str, facts: Mapping[str, Any], time: str) -> Entry:
        """Return the entry that follows `last` in the chain, or the first entry if `last` is None."""
        seq, previous = (1, GENESIS) if last is None else (last.seq + 1, last.hash)
        body = {"seq": seq, "time": time, "kind": kind, "facts": dict(facts), "previous": previous}
        return cls(seq, time, kind, dict(facts), previous, digest_of(body))

    @property
    def line(self) -> str:
        """The entry as a line of the file."""
        return json.dumps(vars(self), sort_keys=True, allow_nan=False) + "\n"


class Ledger:
    """The ledger in one file, which need not exist yet. Several processes may read and append.

    It is signed with the key of the workspace that it lies in (`expunge.ledger.keys`).
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._head = HeadFiles(self.path)

    def entries(self) -> list[Entry]:
        """Check the chain and return all entries, oldest first; [] without a file. Raises LedgerError."""
        with self._reading() as content:
            return self._read(content)

    def verify(self, known: Sequence[str] = (), key: PublicKey | None = None) -> int:
        """Verify the ledger and return its number of entries.

        Raises LedgerError if the chain is broken, if its last entry is not the one in the signed head, or if an entry
        is missing whose hash is in `known` (hashes that were stored elsewhere when the entries were written). `key`:
        the signer's public key; the workspace's own if omitted.
        """
        with self._reading() as content:
            entries = self._read(content)
            if entries or self._head.path.exists():
                self._head.check(entries, key or public_key(self.path.parent))
        hashes = {entry.hash for entry in entries}
        for hash_ in known:
            if hash_ not in hashes:
                raise LedgerError(
                    f"{self.path}: the entry {hash_} was written once and is not in it. The end of the file was cut "
                    "off, or this is another ledger. Restore the file that contains the entry"
                )
        return len(entries)

    def append(self, kind: str, facts: Mapping[str, Any], *, after: str | None = None) -> Entry:
        """Append one entry, and return it once it is on the disk; on failure the file stays unchanged.

        `after`: the hash that the last entry must still have (GENESIS for an empty ledger), so that no decision is
        based on an outdated state. Raises LedgerError.
        """
        _refuse_personal(facts)
        with self._appending(after) as (descriptor, key, entries):
            return self._add(descriptor, key, entries[-1] if entries else None, kind, facts)

    def append_events(self, events: Iterable[tuple[str, str, Mapping[str, Any]]]) -> list[Entry]:
        """Append an entry for each event `(name, kind, facts)` that the ledger lacks, and return the entries of all.

        `name` is unique; it is added to the facts as `event`. The chain is read and checked once, however many events
        there are. Each entry is on the disk before the next one is written, so an interrupted call leaves whole
        entries, and the next call adds the others. Raises LedgerError.
        """
        wanted = [(name, kind, {**facts, "event": name}) for name, kind, facts in events]
        for _, _, facts in wanted:
            _refuse_personal(facts)
        with self._appending() as (descriptor, key, entries):
            known = {entry.facts["event"]: entry for entry in entries if "event" in entry.facts}
            last = entries[-1] if entries else None
            for name, kind, facts in wanted:
                if name not in known:
                    last = known[name] = self._add(descriptor, key, last, kind, facts)
        return [known[name] for name, _, _ in wanted]

    @contextmanager
    def _appending(self, after: str | None = None) -> Iterator[tuple[int, SigningKey, list[Entry]]]:
        """Yield descriptor, key and the checked entries under an exclusive lock."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        key = signing_key(self.path.parent)
        with self._alone() as descriptor:
            entries = self._read(_content(descriptor))
            last = entries[-1] if entries else None
            self._head.check(entries, key.public)
            self._head.settle(last)
            if after is not None and after != (last.hash if last else GENESIS):
                raise LedgerError(f"{self.path}: an entry was written meanwhile; look again before you decide")
            yield descriptor, key, entries

    def _add(self, descriptor: int, key: SigningKey, last: Entry | None, kind: str, facts: Mapping[str, Any]) -> Entry:
        """Write the entry that follows `last`, and the head that names it."""
        entry = Entry.after(last, kind, facts, datetime.now(UTC).isoformat(timespec="seconds"))
        self._head.announce(entry, key)
        _write(descriptor, entry.line.encode())
        self._head.confirm()
        return entry

    @contextmanager
    def _reading(self) -> Iterator[bytes]:
        """Yield the content under a shared lock; b"" without a file."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            yield b""
            return
        with file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield file.read()

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Yield a descriptor for appending under an exclusive lock."""
        new = not self.path.exists()
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as e:
            raise LedgerError(f"{self.path}: the ledger cannot be opened for writing ({e.strerror})") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
            if new:
                sync(self.path.parent)
        finally:
            os.close(descriptor)

    def _read(self, content: bytes) -> list[Entry]:
        """Parse the entries and check the chain. Raises LedgerError, whose message names the line."""
        if content and not content.endswith(b"\n"):
            raise LedgerError(
                f"{self.path}: its last line is cut off. If a process was killed while it wrote, remove that line, on "
                "which nothing depends. Otherwise restore the file"
            )
        entries: list[Entry] = []
        for number, line in enumerate(content.decode("ascii", "replace").split("\n")[:-1], 1):
            where = f"{self.path}, line {number}"
            entry = _parse(line, where)
            before = entries[-1] if entries else None
            wanted = Entry.after(before, entry.kind, entry.facts, entry.time)
            if (entry.seq, entry.previous) != (wanted.seq, wanted.previous):
                raise LedgerError(
                    f"{where}: entry {entry.seq} does not follow entry {before.seq if before else 0}: "
                    "an entry was dropped, moved or inserted; restore the file"
                )
            if entry.hash != wanted.hash:
                raise LedgerError(f"{where}: entry {entry.seq} was changed after it was written; restore the file")
            entries.append(entry)
        return entries


def _parse(line: str, where: str) -> Entry:
    try:
        entry = Entry(**json.loads(line))
        if not isinstance(entry.facts, dict) or type(entry.seq) is not int:
            raise TypeError
        text = entry.line
    except (ValueError, TypeError, RecursionError):
        raise LedgerError(f"{where}: not an entry of a ledger; restore the file") from None
    # The text is compared too: the same JSON values in another notation would have the same hash.
    if text != line + "\n":
        raise LedgerError(f"{where}: entry {entry.seq} was changed after it was written; restore the file")
    return entry


def _refuse_personal(value: Any) -> None:
    """Raise LedgerError if `value` has a key of PERSONAL at any depth."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in PERSONAL:
                raise LedgerError(f"facts hold {key!r}: ids of rows and people do not belong in a ledger")
            _refuse_personal(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_personal(inner)


def _content(descriptor: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return file.read()


def _write(descriptor: int, line: bytes) -> None:
    """Append and sync a line. On failure truncate the file to its former size and raise LedgerError."""
    size = os.fstat(descriptor).st_size
    try:
        if os.write(descriptor, line) != len(line):
            raise OSError("only a part of the entry was written")
        os.fsync(descriptor)
    except OSError as e:
        os.ftruncate(descriptor, size)
        raise LedgerError(f"the ledger could not be written ({e}); nothing was added") from e
