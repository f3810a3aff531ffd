"""The signed head of a ledger: which entry is its last. It shows that the end was cut off, and what others appended.

Two small files beside the ledger. The head of an entry is signed before the entry is written (`*.next.json`) and takes
its place afterwards (`*.head.json`): a process that dies in between leaves nothing that is not signed.

A ledger and its head that were both put back to an earlier state agree with each other. That is found by what was kept
elsewhere: certificates, the request store and the model registry hold hashes of entries (`Ledger.verify`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from expunge.ledger.keys import PublicKey, SigningKey
from expunge.system.errors import LedgerError
from expunge.system.files import read_json, write_durable


class Link(Protocol):
    """What a head needs to know of an entry."""

    @property
    def seq(self) -> int: ...
    @property
    def hash(self) -> str: ...


@dataclass(frozen=True)
class Head:
    """Entry `seq` with `hash` is the last; `key` is the fingerprint of who says so."""

    seq: int
    hash: str
    key: str
    signature: str

    @classmethod
    def of(cls, entry: Link, key: SigningKey) -> Head:
        return cls(entry.seq, entry.hash, key.public.fingerprint, key.sign(_content(entry.seq, entry.hash)))

    def names(self, entry: Link) -> bool:
        return (self.seq, self.hash) == (entry.seq, entry.hash)

    def signed_by(self, key: PublicKey) -> bool:
        return key.signed(_content(self.seq, self.hash), self.signature)


class HeadFiles:
    """The two files beside the ledger at `path`."""

    def __init__(self, path: Path) -> None:
        self.ledger = path
        self.path, self.coming = path.with_suffix(".head.json"), path.with_suffix(".next.json")

    def check(self, entries: Sequence[Link], key: PublicKey) -> None:
        """Raises LedgerError unless a head signed by `key` names the last of `entries`."""
        coming, head = self._read(self.coming), self._read(self.path)
        last = entries[-1] if entries else None
        if last is not None and coming is not None and coming.names(last):
            head = coming  # it was written, and the process died before it said so
        if head is None:
            if last is None:
                return
            raise LedgerError(
                f"{self.path}: missing, so nothing shows that {self.ledger.name} is whole; restore both files together"
            )
        if not head.signed_by(key):
            raise LedgerError(
                f"{self.path}: not signed by the key {key.fingerprint[:19]} but by {head.key[:19]}, or changed; "
                "restore it, or set EXPUNGE_SIGNING_KEY to the key of whoever keeps this ledger"
            )
        if last is None or head.seq > last.seq:
            raise LedgerError(
                f"{self.ledger}: its end was cut off: the signed head names entry {head.seq}, "
                f"the last one here is {last.seq if last else 0}. Put back the file that goes on to it"
            )
        if not head.names(last):
            raise LedgerError(
                f"{self.ledger}: the signed head names entry {head.seq} ({head.hash[:19]}), but the last one here is "
                f"{last.seq} ({last.hash[:19]}): written past the ledger's own door. Restore the file"
            )

    def announce(self, entry: Link, key: SigningKey) -> None:
        """Before `entry` is written."""
        text = json.dumps(Head.of(entry, key).__dict__, indent=2, sort_keys=True) + "\n"
        write_durable(self.coming, text.encode(), mode=0o666)  # for everybody to check, as the umask allows

    def confirm(self) -> None:
        """After it was written."""
        os.replace(self.coming, self.path)

    def settle(self, last: Link | None) -> None:
        """Finish or drop what a process that died had announced."""
        coming = self._read(self.coming)
        if coming is None:
            return
        if last is not None and coming.names(last):
            self.confirm()
        else:
            self.coming.unlink()

    @staticmethod
    def _read(path: Path) -> Head | None:
        if not path.is_file():
            return None
        try:
            head = Head(**read_json(path))
            if type(head.seq) is not int or not all(isinstance(v, str) for v in (head.hash, head.key, head.signature)):
                raise TypeError
            return head
        except Exception:
            raise LedgerError(f"{path}: not the head of a ledger; restore it") from None


def _content(seq: int, hash_: str) -> bytes:
    return f"expunge ledger head\n{seq}\n{hash_}\n".encode()
