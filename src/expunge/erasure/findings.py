"""The findings of a batch's dry run and of its sweep, as one report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def joined(
    before: Mapping[str, list[dict[str, Any]]], after: Mapping[str, list[dict[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """Merge the reports of the dry run (`before`) and of the sweep (`after`).

    What was found and is not left counts as purged.
    """
    # For one place the entry of the sweep is kept: the dry run words some findings differently.
    swept = {entry["where"] for entry in after["found"]}
    found = [*after["found"], *(entry for entry in before["found"] if entry["where"] not in swept)]
    left = {(entry["where"], entry["what"]) for entry in after["left"]}
    others = [*after["not_purgeable"], *(e for e in before["not_purgeable"] if e not in after["not_purgeable"])]
    return {
        "found": sorted(found, key=_place),
        "purged": sorted((entry for entry in found if (entry["where"], entry["what"]) not in left), key=_place),
        "not_purgeable": sorted(others, key=_place),
        "left": after["left"],
    }


def _place(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry["where"], entry["what"]
