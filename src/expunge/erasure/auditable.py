"""Sentences that say what an audit of a certificate recomputes and what the auditor still has to trust."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADS = {"RidgeHead": "ridge", "SoftmaxHead": "softmax"}
ABOVE, SHARDS = "above", "shards"

BACKBONE = (
    "the public backbone never saw the rows: the certificate names it by its digest, how it was trained is its "
    "publisher's word"
)
ENCODED = (
    "the stored features or activations are those that the public layers make of the rows (--encode makes them again)"
)
CONTENT = "the rows of the dataset are what came in under their ids: digests cover ids and labels, not contents"
KEY = "the key of the row digests (data/forgotten/key) was not chosen to fit"


def kind_of(claim: Mapping[str, Any]) -> str | None:
    """Return the kind of an exact claim (`exact` in `fit.json`): "ridge", "softmax", "above" or "shards"; None for any
    other procedure."""
    if "recipe" in claim:
        return SHARDS if "shards" in claim else ABOVE
    return HEADS.get(claim.get("head", {}).get("kind"))


def recomputes(claim: Mapping[str, Any]) -> str | None:
    """Return a phrase that says what `expunge certificate audit` recomputes; None if it cannot repeat the procedure."""
    kind = kind_of(claim)
    if kind is None:
        return None
    if kind == SHARDS:
        count, nonce = claim["shards"]["count"], "or those of them that an auditor's --nonce picks"
        return (
            f"the {count} shards above {claim['recipe']['cut']}, {nonce}, from their public weights, on the "
            f"activations of the {claim['rows']['retained']:,} retained training rows by the recipe named; beside them "
            "the digests of the layers below and of every shard, and the Merkle root of the rows of each"
        )
    if kind == ABOVE:
        return (
            f"the network above {claim['recipe']['cut']}, from its public weights, on the activations of the "
            f"{claim['rows']['retained']:,} retained training rows by the recipe named; beside it the digest of the "
            "layers below and the Merkle root of the rows"
        )
    many = f"the {claim['heads']['count']} {kind} heads and their mean" if "heads" in claim else f"the {kind} head"
    return (
        f"{many}, from nothing, on the features of the {claim['rows']['retained']:,} retained training rows "
        "with the settings named; beside it the digest of the public backbone and the Merkle root of the rows"
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
    made, count = shards
    return [
        f"{count - made} of {count} shards were not made again: that they are what training on their rows gives is "
        f"taken from the certificate; one wrong shard escapes {made} picked at random with probability "
        f"{(count - made) / count:.0%}, as long as nobody knew the nonce when it was signed"
    ]
