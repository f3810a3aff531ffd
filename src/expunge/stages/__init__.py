"""One small file per DVC stage: read files, call the library, write files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from expunge.errors import ExpungeError
from expunge.files import write_json
from expunge.paths import COST
from expunge.usage import Usage

# No tool that a stage imports may report home, and every seed is explicit.
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",
}


_usage: Usage | None = None


def run(main: Callable[[], None]) -> None:
    """Run a stage: an ExpungeError becomes one clear line and exit status 2; anything else is a bug, shown whole."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    global _usage
    _usage = Usage().start()
    try:
        main()
    except ExpungeError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from None


def write_cost(name: str, cost: Mapping[str, Any]) -> None:
    """`reports/cost/NAME.json`: what a stage measured of itself, and, where it took long, its samples of processor and
    memory. They are an output, so a run whose stages come from the cache has them too."""
    usage = _usage.series() if _usage else {}
    write_json(COST / f"{name}.json", {**cost, **({"usage": usage} if usage else {})})
