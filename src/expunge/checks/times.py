"""Read how long each stage took in its last run, from reports/cost."""

from __future__ import annotations

import json
from pathlib import Path

from expunge.system.paths import COST

# First part of NAME in reports/cost/NAME.json -> key of the seconds in the file.
SECONDS = {
    "train": "train_s",
    "retrain": "train_s",
    "extract": "seconds",
    "fit": "fit_s",
    "evaluate": "evaluate_s",
    "shadow": "shadow_s",
}


def last_times(directory: Path = COST) -> dict[str, float]:
    """Return the seconds of the last run by stage, named as in dvc.yaml (`fit@loft`), whatever its params were.

    Files that cannot be read are left out.
    """
    found = {}
    for path in sorted(directory.glob("*.json")):
        kind, _, rest = path.stem.partition("-")
        if kind not in SECONDS:
            continue
        try:
            seconds = json.loads(path.read_text(encoding="utf-8")).get(SECONDS[kind])
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(seconds, int | float):
            found[_stage(kind, rest)] = float(seconds)
    return found


def _stage(kind: str, rest: str) -> str:
    if not rest or rest == "original":
        return kind
    if rest.startswith("retrained-"):
        return f"{kind}-retrained@{rest.removeprefix('retrained-')}"
    return f"{kind}-{rest}" if rest == "references" else f"{kind}@{rest}"
