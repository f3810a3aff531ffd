"""Sentences that say what an audit of a certificate recomputes and what the auditor still has to trust."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADS = {"RidgeHead": "ridge", "SoftmaxHead": "softmax"}
ABOVE, SHARDS = "above", "shards"

BACKBONE = (
    "the public backbone never saw the rows: the certificate names its digest, but only its publisher can say how it "
    "was trained"
)
ENCODED = (
    "the stored features or activations are what the public layers compute from the rows (--encode computes them again)"
)
CONTENT = "the rows of the dataset are what came in under their ids: the digests cover ids and labels, not contents"
KEY = "the key of the row digests (data/forgotten/key) was not chosen to make the digests agree"


def kind_of(claim: Mapping[str, Any]) -> str | None:
    """Return the kind of an exact claim (`exact` in `fit.json`), or None for any other procedure.

    The kind is "ridge", "softmax", "above" or "shards".
    """
    if "recipe" in claim:
        return SHARDS if "shards" in claim else ABOVE
    return HEADS.get(claim.get("head", {}).get("kind"))


def recomputes(claim: Mapping[str, Any]) -> str | None:
    """Return a phrase that says what `expunge certificate audit` recomputes; None if it cannot repeat the procedure."""
    kind = kind_of(claim)
    if kind is None:
        return None
    if kind == SHARDS:
        count, nonce = claim["shards"]["count"], "or those of them that an auditor's --nonce selects"
        return (
            f"the {count} shards above {claim['recipe']['cut']}, {nonce}, from their public weights, on the "
            f"activations of the {claim['rows']['retained']:,} retained training rows by the named recipe; and the "
            "digests of the layers below and of every shard, and the Merkle root of the rows of each shard"
        )
    if kind == ABOVE:
        return (
            f"the network above {claim['recipe']['cut']}, from its public weights, on the activations of the "
            f"{claim['rows']['retained']:,} retained training rows by the named recipe; and the digest of the layers "
            "below and the Merkle root of the rows"
        )
    many = f"the {claim['heads']['count']} {kind} heads and their mean" if "heads" in claim else f"the {kind} head"
    return (
        f"{many}, from scratch, on the features of the {claim['rows']['retained']:,} retained training rows "
        "with the named settings; and the digest of the public backbone and the Merkle root of the rows"
    )


def trusted(encoded: bool = False, shards: tuple[int, int] | None = None) -> list[str]:
    """Return what still has to be trusted after a recomputation that agrees.

    `encoded`: the features or activations were recomputed too. `shards`: how many shards were recomputed, and how many
    there are.
    """
    return [BACKBONE, *([] if encoded else [ENCODED]), *_unseen(shards), CONTENT, KEY]


def _unseen(shards: tuple[int, int] | None) -> list[str]:
    if shards is None or shards[0] == shards[1]:
        return []
    again, count = shards
    return [
        f"{count - again} of {count} shards, which were not trained again, are what training on their rows gives, as "
        f"the certificate says; if one shard is wrong, {again} picked at random miss it with probability "
        f"{(count - again) / count:.0%}, provided that nobody knew the nonce when the certificate was signed"
    ]
