"""One small file per DVC stage: read files, call the library, write files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from expunge.errors import ExpungeError

# No tool that a stage imports may report home, and every seed is explicit.
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",
}


def run(main: Callable[[], None]) -> None:
    """Run a stage: an ExpungeError becomes one clear line and exit status 2; anything else is a bug, shown whole."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        main()
    except ExpungeError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from None
