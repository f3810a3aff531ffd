"""What a sweep is given, and what it said before and after."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def joined(
    before: Mapping[str, list[dict[str, Any]]], after: Mapping[str, list[dict[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """One report of the look before a sweep and of the sweep. What was found and is not left was purged."""

    def by_place(entries: Iterable[dict[str, Any]]) -> dict[tuple[str, ...], dict[str, Any]]:
        ordered = sorted(entries, key=lambda e: int(e.get("count", 0)))  # the larger count stays
        return {(e["where"], e["what"], e.get("who", "")): e for e in ordered}

    found = by_place([*before["found"], *after["found"]])
    left = by_place(after["left"])
    others = by_place([*before["not_purgeable"], *after["not_purgeable"]])
    return {
        "found": [found[key] for key in sorted(found)],
        "purged": [found[key] for key in sorted(found.keys() - left.keys())],
        "not_purgeable": [others[key] for key in sorted(others)],
        "left": after["left"],
    }


def write_private(path: Path, text: str) -> None:
    """Whole or not at all, and never readable by others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_suffix(".tmp")
    tmp.unlink(missing_ok=True)
    with os.fdopen(os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(tmp, path)
