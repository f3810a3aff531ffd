"""Adapt the words of a report to its request: an erasure forgets rows, corrections give rows other labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from expunge.data.corrections import SELECTOR as CORRECT

# Replacements are made in this order, so a phrase comes before a shorter one that it contains.
CORRECTED = (
    ("never to have seen the forgotten rows", "never to have seen the old labels"),
    ("was trained on the forgotten rows", "was trained on the old labels"),
    ("features z still carry them", "features z still carry what these taught"),
    ("with a model that never saw the rows", "with a model that learned the new labels"),
    ("were to be forgotten", "were to get other labels"),
    ("training rows to be forgotten", "training rows to be corrected"),
    ("must no longer shape the answers", "must shape the answers by their new labels alone"),
    ("What was forgotten", "What was corrected"),
    ("After forgetting", "After the correction"),
    ("What forgetting cost the classes that stay", "What the correction cost"),
    ("training again does not forget these", "training again learns their old labels"),
    ("<h1>Forget ", "<h1>Correct "),
    ("erasure claim", "claim"),
    ("erasure: ", "correction: "),
    ("utility and erasure", "utility and correction"),
)
WORD = re.compile(r"\b[Ff]orgotten\b")


def corrects(request: Mapping[str, Any]) -> bool:
    """Whether `request`, as the split stage wrote it, replaces labels."""
    return bool(request["selector"] == CORRECT)


def worded(text: str, request: Mapping[str, Any]) -> str:
    """Return `text` in the words of the request.

    For an erasure it is unchanged. For corrections the replacements of `CORRECTED` are made, and "corrected" takes the
    place of "forgotten".
    """
    if not corrects(request):
        return text
    for old, new in CORRECTED:
        text = text.replace(old, new)
    return WORD.sub(lambda found: "Corrected" if found[0][0] == "F" else "corrected", text)
