"""reports/results.csv: every number of the summary, one per line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from expunge.report.metrics import lookup
from expunge.report.tables import candidates


def results_csv(summary: Mapping[str, Any]) -> str:
    """Return the text of a CSV file with the columns `candidate,metric,value,spread,low,high`.

    `metric` is the dotted path of the summary, with an index if a metric has one value per class or step. `spread` is
    the standard deviation over retrained models, `low` and `high` the bootstrap interval; they are empty if they do not
    exist. Units are those of the summary: shares in [0, 1], nats, seconds.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["candidate", "metric", "value", "spread", "low", "high"])
    for name, block in candidates(summary):
        shown = {k: v for k, v in block.items() if k not in ("intervals", "spread", "verdict", "seeds")}
        spreads = dict(_numbers(block.get("spread") or {}))
        for path, value in _numbers(shown):
            low, high = lookup(block, "intervals").get(path, ("", "")) if block.get("intervals") else ("", "")
            writer.writerow([name, path, *(_text(v) for v in (value, spreads.get(path, ""), low, high))])
    return out.getvalue()


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number below `value` with its dotted path; nulls and strings are left out."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _numbers(item, f"{path}.{i}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.10g}"
