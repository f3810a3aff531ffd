"""Known artefacts of published numbers, as switches that are off by default."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.system.errors import ConfigError

STEPS, SCALING, PROXIES = "forget-set-steps", "published-scaling", "raw-proxies"
AUGMENTED, LOGITS_CKA = "augmented-retained", "logits-cka"
OF_ENTRIES = frozenset({STEPS, SCALING, PROXIES})  # switches that change the fits
# By name, the effect of the switch and what is done without it.
SWITCHES: dict[str, tuple[str, str]] = {
    AUGMENTED: (
        "retained accuracy is also measured on augmented training pictures, as a training loader gives them",
        "retained accuracy is measured on the pictures as they are",
    ),
    STEPS: (
        "the number of steps is counted in passes over the forgotten rows, so small requests get few",
        "every request gets 1,000 steps",
    ),
    PROXIES: (
        "zero-shot maps take rows of the head as they are for features of classes",
        "zero-shot maps take rows of the head brought to the norm of features",
    ),
    LOGITS_CKA: (
        "CKA is also taken between logits and the original's features",
        "CKA is taken between features",
    ),
    SCALING: (
        "the loss on forgotten rows is a sum over dimensions, that on retained rows a mean: beta counts d times",
        "both losses are means over dimensions",
    ),
}


def chosen(given: Sequence[str], as_published: bool = False) -> frozenset[str]:
    """The switches that are on: those `given`, or all with `as_published`. Raises ConfigError for an unknown name."""
    for name in given:
        if name not in SWITCHES:
            close = difflib.get_close_matches(name, SWITCHES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(SWITCHES)}"
            raise ConfigError(f"--artefact {name}: no such switch; {hint}")
    return frozenset(SWITCHES if as_published else given)


def entry_settings(settings: Mapping[str, Any], switches: frozenset[str]) -> dict[str, Any]:
    """Settings of one entry of Representation Unlearning with the switches applied."""
    zero_shot = "zero-shot" in settings["method"]
    own: dict[str, Any] = {} if STEPS not in switches else {"steps": "published"}
    if zero_shot:
        own["proxies"] = "raw" if PROXIES in switches else "scaled"
    else:
        own["loss"] = "published" if SCALING in switches else "per-dimension"
    return {**settings, **own}
