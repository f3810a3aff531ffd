"""One small file per DVC stage: it reads files, calls the library and writes files.

May import every package except promotion, sweep, erasure and commands. No library module imports a stage.
Start with `fit.py`.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable

from expunge.system import malloc, monitor
from expunge.system.errors import ExpungeError
from expunge.system.installed import refuse_other_version

# A stage imports a million objects and keeps them. Looking for garbage among them less often while they come in, and
# not at all when the process ends (`run` freezes them), saves a short stage a third of its time.
gc.set_threshold(100_000, 50, 50)
malloc.keep_freed()

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
    """Run a stage, its use of the machine sampled; see `guarded`. Refused where `expunge.lock` is of other code."""
    monitor.start()

    def of_this_version() -> None:
        refuse_other_version()
        main()

    guarded(of_this_version)


def guarded(main: Callable[[], object]) -> None:
    """Run a stage or a command: an ExpungeError becomes one clear line and exit status 2; anything else is a bug, shown
    whole."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        main()
    except ExpungeError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        gc.freeze()
