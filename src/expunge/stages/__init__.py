"""One small file per DVC stage, which reads files, calls the library and writes files.

May import every package except promotion, sweep, erasure and commands. No library module imports a stage.
A stage that may have nothing to do imports its library in the function that does the work.
Start with `fit.py`.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

from expunge.system import malloc, monitor, storage
from expunge.system.errors import ExpungeError
from expunge.system.installed import refuse_other_version

# Imports create about a million objects that live until the process ends. Collecting garbage less often during the
# imports, and not at all at exit (`guarded` freezes the objects), saves a short stage a third of its time.
gc.set_threshold(100_000, 50, 50)
malloc.keep_freed()

# Keep the tools that a stage imports from sending usage statistics.
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",
}


def run(main: Callable[[], None]) -> None:
    """Run a stage as `guarded` does and sample its resource use.

    The stage is refused if `expunge.lock` records other code than the installed package's.
    """
    monitor.start()

    def of_this_version() -> None:
        refuse_other_version()
        main()

    guarded(of_this_version)


def guarded(main: Callable[[], object]) -> None:
    """Run a stage or a command.

    An ExpungeError and a failure of the disk are printed as one line and end the process with status 2. Any other
    exception is a bug and keeps its traceback.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        main()
    except ExpungeError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as e:
        if (line := storage.words(e, Path.cwd())) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        gc.freeze()
