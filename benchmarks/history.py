"""The record of earlier benchmark runs, in git beside the code: one line of JSON for each run that was kept."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from expunge.system.files import write_text
from expunge.system.git import git_state
from expunge.system.processors import cores

HISTORY = Path(__file__).with_name("history.jsonl")
NOTABLE = 0.1  # a figure that differs by less is noise on a shared machine


def machine() -> str:
    """Return the kind of processor and the number of cores; figures of other machines are not compared."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    return f"{model or platform.processor() or platform.machine()}, {cores()} cores"


def numbers(results: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in nested `results` with its dotted name; list items are numbered."""
    if isinstance(results, Mapping):
        for key, value in results.items():
            yield from numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(results, list | tuple):
        for at, value in enumerate(results):
            yield from numbers(value, f"{name}.{at}")
    elif isinstance(results, int | float) and not isinstance(results, bool):
        yield name, float(results)


def last(history: Path, on: str) -> dict[str, Any] | None:
    """Return the newest record per benchmark that the machine `on` has in `history`, merged; None without any."""
    merged: dict[str, Any] | None = None
    for line in history.read_text(encoding="utf-8").splitlines() if history.exists() else []:
        record = json.loads(line)
        if record["machine"] == on:
            results = (merged or {"results": {}})["results"] | record["results"]
            merged = {**record, "results": results}
    return merged


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Return name, earlier and present value of each figure in both that differs by more than NOTABLE."""
    old = dict(numbers(before))
    return [
        (name, old[name], value)
        for name, value in numbers(now)
        if name in old and abs(value - old[name]) > NOTABLE * abs(old[name])
    ]


def print_changes(results: Mapping[str, Any], history: Path = HISTORY) -> None:
    """Print what differs from the last record of this machine."""
    before = last(history, machine())
    if before is None:
        Console().print(f"{history.name} has no record of this machine ({machine()}); --keep adds one")
        return
    found = changes(before["results"], results)
    title = f"Differs by more than {NOTABLE:.0%} from {before['commit'][:8]}, {before['date']}"
    table = Table("figure", "before", "now", "ratio", title=title)
    for name, old, new in found:
        table.add_row(name, f"{old:.4g}", f"{new:.4g}", f"{new / old:.2f}" if old else "")
    Console().print(table if found else f"No figure {title[0].lower()}{title[1:]}")


def keep(results: Mapping[str, Any], history: Path = HISTORY) -> None:
    """Append `results` to the record, with commit, date and machine."""
    commit, date = git_state()["git_commit"], f"{datetime.now(UTC):%Y-%m-%d}"
    record = {"commit": commit, "date": date, "machine": machine(), "results": results}
    text = history.read_text(encoding="utf-8") if history.exists() else ""
    write_text(history, text + json.dumps(record, sort_keys=True) + "\n")
