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

from expunge.system import parent, warm

# A stage that is run by hand may outlive its shell.
if "DVC_STAGE" in os.environ:
    parent.end_with_parent()
# `python -m expunge.stages.NAME` imports this package first. A stage that is handed over needs no import below.
warm.hand_over(sys.orig_argv)

from expunge.system import malloc, monitor, storage  # noqa: E402
from expunge.system.errors import ExpungeError  # noqa: E402
from expunge.system.installed import refuse_other_version  # noqa: E402
from expunge.system.quiet import keep_quiet  # noqa: E402

# Imports create about a million objects that live until the process ends. Collecting garbage less often during the
# imports, and not at all at exit (`guarded` freezes the objects), saves a short stage a third of its time.
gc.set_threshold(100_000, 50, 50)
malloc.keep_freed()


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
    keep_quiet()
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
