"""Merkle tree root: one digest that commits to a list of digests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def merkle_root(leaves: Sequence[bytes]) -> str:
    """Return the root `sha256:...` of `leaves` in the given order (RFC 6962, section 2.1).

    Without leaves it is the SHA-256 of the empty string.
    """
    # The prefixes 0x00 and 0x01 keep leaves and inner nodes apart, so that neither can pass for the other (RFC 6962).
    level = [hashlib.sha256(b"\x00" + leaf).digest() for leaf in leaves]
    if not level:
        return "sha256:" + hashlib.sha256().hexdigest()
    # RFC 6962 splits at the largest power of two below n. Pairing neighbours and promoting an odd node unchanged to the
    # next level gives the same tree.
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return "sha256:" + level[0].hex()


def row_leaves(digests: Sequence[bytes], labels: Sequence[int]) -> list[bytes]:
    """Return the Merkle leaf of each row: its keyed digest, then its label as 4 bytes, big-endian."""
    return [digest + int(label).to_bytes(4, "big") for digest, label in zip(digests, labels, strict=True)]
