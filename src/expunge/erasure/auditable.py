"""What an audit of a certificate makes again, and what whoever audits still has to trust, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADS = {"RidgeHead": "ridge", "SoftmaxHead": "softmax"}
ABOVE = "above"

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
    """ "ridge", "softmax" or "above", of a product's record of what is exact (`fit.json`); None for another
    procedure."""
    return ABOVE if "recipe" in claim else HEADS.get(claim.get("head", {}).get("kind"))


def recomputes(claim: Mapping[str, Any]) -> str | None:
    """What `expunge certificate audit` makes again, in a sentence; None where it cannot repeat the procedure."""
    kind = kind_of(claim)
    if kind is None:
        return None
    if kind == ABOVE:
        return (
            f"the network above {claim['recipe']['cut']}, from its public weights, on the activations of the "
            f"{claim['rows']['retained']:,} retained training rows by the recipe named; beside it the digest of the "
            "layers below and the Merkle root of the rows"
        )
    return (
        f"the {kind} head, from nothing, on the features of the {claim['rows']['retained']:,} retained training rows "
        "with the settings named; beside it the digest of the public backbone and the Merkle root of the rows"
    )


def trusted(encoded: bool = False) -> list[str]:
    """What has to be trusted after a recomputation that agrees; `encoded`: the features were made again, too."""
    return [BACKBONE, *([] if encoded else [ENCODED]), CONTENT, KEY]
