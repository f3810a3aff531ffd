"""The privacy budget that certified heads have spent so far, stored beside the forgotten rows across runs.

`certified.json` in that directory lists every release with its epsilon, delta and number of rows. It holds no noise, no
weights and no ids. Releases with independent noise add up in epsilon and in delta [basic composition].
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.ledger.forgotten import ForgottenRows
from expunge.system.errors import DataError
from expunge.system.files import write_durable

FILE = "certified.json"


@dataclass(frozen=True)
class Spending:
    """`epsilon` and `delta` summed over `releases`; `known` is False if rows were forgotten before the list began."""

    epsilon: float
    delta: float
    releases: tuple[dict[str, Any], ...]
    known: bool


def spent_before(forgotten_dir: Path) -> Spending:
    """Read what was spent so far. Raises DataError for a damaged list."""
    path = forgotten_dir / FILE
    if not path.is_file():
        return Spending(0.0, 0.0, (), known=not ForgottenRows(forgotten_dir).requests())
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        releases = tuple(found["releases"])
        epsilon, delta = (float(sum(r[key] for r in releases)) for key in ("epsilon", "delta"))
        return Spending(epsilon, delta, releases, known=bool(found["complete"]))
    except (ValueError, KeyError, TypeError) as e:
        raise DataError(
            f"{path}: cannot be read as a list of releases ({e}); restore it, because nothing can be certified "
            "without it"
        ) from None


def record(forgotten_dir: Path, before: Spending, epsilon: float, delta: float, rows: int) -> None:
    """Add a release to the list and flush it to the disk. Call this before the head is written.

    If a run is killed in between, the list then overstates what was spent and never understates it.
    """
    releases = [*before.releases, {"epsilon": epsilon, "delta": delta, "rows": rows}]
    content = json.dumps({"complete": before.known, "releases": releases}, indent=2, sort_keys=True) + "\n"
    forgotten_dir.mkdir(parents=True, exist_ok=True)
    write_durable(forgotten_dir / FILE, content.encode())
