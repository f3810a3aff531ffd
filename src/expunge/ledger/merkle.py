"""The root of a Merkle tree: one digest that stands for a set of digests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def merkle_root(leaves: Sequence[bytes]) -> str:
    """`sha256:...` over `leaves` in the order given, as RFC 6962 section 2.1 has it; of none, the digest of nothing."""
    level = [hashlib.sha256(b"\x00" + leaf).digest() for leaf in leaves]
    if not level:
        return "sha256:" + hashlib.sha256().hexdigest()
    # RFC 6962 splits at the largest power of two below n: the same tree as pairing and carrying an odd node up.
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return "sha256:" + level[0].hex()


def row_leaves(digests: Sequence[bytes], labels: Sequence[int]) -> list[bytes]:
    """What stands for rows in such a tree: the keyed digest of each, and its label in 4 bytes."""
    return [digest + int(label).to_bytes(4, "big") for digest, label in zip(digests, labels, strict=True)]
