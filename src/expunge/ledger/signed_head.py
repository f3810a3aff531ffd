"""The signed head of a ledger is a signature over its last entry.

It reveals truncation and entries added without the key.

The head is kept in two small files beside the ledger. It is signed before its entry is written (`*.next.json`) and
renamed afterwards (`*.head.json`), so a process that is killed in between never leaves an entry without a signature.

A ledger and its head that were both restored to an earlier state are consistent with each other. Hashes of entries
that are stored elsewhere reveal this: certificates, the request store and the model registry hold some
(`Ledger.verify`).
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
    """The part of an entry that a head refers to."""

    @property
    def seq(self) -> int:
        """The number of the entry."""

    @property
    def hash(self) -> str:
        """The hash of the entry."""


@dataclass(frozen=True)
class SignedHead:
    """A signed statement that entry `seq` with `hash` is the last; `key` is the fingerprint of the signer's key."""

    seq: int
    hash: str
    key: str
    signature: str

    @classmethod
    def of(cls, entry: Link, key: SigningKey) -> SignedHead:
        """Sign `entry` as the last one."""
        return cls(entry.seq, entry.hash, key.public.fingerprint, key.sign(_content(entry.seq, entry.hash)))

    def names(self, entry: Link) -> bool:
        """Return whether this head refers to `entry`."""
        return (self.seq, self.hash) == (entry.seq, entry.hash)

    def signed_by(self, key: PublicKey) -> bool:
        """Return whether `key` verifies the signature."""
        return key.signed(_content(self.seq, self.hash), self.signature)


class HeadFiles:
    """The two head files beside the ledger at `path`."""

    def __init__(self, path: Path) -> None:
        self.ledger = path
        self.path, self.coming = path.with_suffix(".head.json"), path.with_suffix(".next.json")

    def check(self, entries: Sequence[Link], key: PublicKey) -> None:
        """Raise LedgerError unless a head signed by `key` names the last of `entries`; an empty ledger needs none."""
        coming, head = self._read(self.coming), self._read(self.path)
        last = entries[-1] if entries else None
        if last is not None and coming is not None and coming.names(last):
            head = coming  # the entry was written, but the process died before `confirm`
        if head is None:
            if last is None:
                return
            raise LedgerError(
                f"{self.path}: no such file, so nothing shows that {self.ledger.name} is complete; restore both files "
                "together"
            )
        if not head.signed_by(key):
            raise LedgerError(
                f"{self.path}: not signed by the key {key.fingerprint[:19]} but by {head.key[:19]}, or changed; "
                "restore it, or set EXPUNGE_SIGNING_KEY to the key of whoever keeps this ledger"
            )
        if last is None or head.seq > last.seq:
            raise LedgerError(
                f"{self.ledger}: its end was cut off: the signed head names entry {head.seq}, "
                f"the last one here is {last.seq if last else 0}. Restore the file that contains it"
            )
        if not head.names(last):
            raise LedgerError(
                f"{self.ledger}: the signed head names entry {head.seq} ({head.hash[:19]}), but the last one here is "
                f"{last.seq} ({last.hash[:19]}): something else than Expunge wrote to it. Restore the file"
            )

    def announce(self, entry: Link, key: SigningKey) -> None:
        """Sign the head of `entry`; called before the entry is written."""
        text = json.dumps(SignedHead.of(entry, key).__dict__, indent=2, sort_keys=True) + "\n"
        write_durable(self.coming, text.encode(), mode=0o666)  # readable by verifiers; the umask applies

    def confirm(self) -> None:
        """Make the announced head the current one; called after its entry was written."""
        os.replace(self.coming, self.path)

    def settle(self, last: Link | None) -> None:
        """Confirm or remove the announced head that an interrupted process left behind."""
        coming = self._read(self.coming)
        if coming is None:
            return
        if last is not None and coming.names(last):
            self.confirm()
        else:
            self.coming.unlink()

    @staticmethod
    def _read(path: Path) -> SignedHead | None:
        if not path.is_file():
            return None
        try:
            head = SignedHead(**read_json(path))
            if type(head.seq) is not int or not all(isinstance(v, str) for v in (head.hash, head.key, head.signature)):
                raise TypeError
            return head
        except Exception:
            raise LedgerError(f"{path}: not the head of a ledger; restore it") from None


def _content(seq: int, hash_: str) -> bytes:
    return f"expunge ledger head\n{seq}\n{hash_}\n".encode()
