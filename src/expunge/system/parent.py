"""Let a process end with the one that started it, so that nothing goes on writing after `kill -9`. Linux only.

A flow or a command starts DVC, and DVC starts a stage. If one of them is killed without a chance to end the others,
the system sends SIGTERM to the next, and so on. Without this, an orphaned stage would go on writing into a workspace
in which the next run has begun.

    python parent.py PID COMMAND ...   becomes COMMAND, which ends with the process PID that starts it
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1  # linux/prctl.h
DVC_PROCESS = "EXPUNGE_DVC_PROCESS"  # the variable that tells a stage which process runs DVC


def end_with_parent() -> None:
    """Have the system send SIGTERM to this process when its parent ends; elsewhere than on Linux do nothing.

    The parent is the thread that started this process, which has to wait for it. Exits if DVC was killed already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if (process := os.environ.get(DVC_PROCESS)) and _has_ended(process):
            raise SystemExit(1)


def _has_ended(process: str) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"  # it has ended, but nobody has waited for it


def ending_with_me(command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` so that it ends with this process."""
    if sys.platform != "linux":
        return list(command)
    # The file itself is run, without site-packages: it starts in milliseconds, whatever the command may import.
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main() -> None:
    """Become the command of the command line, unless the process that asked for it has ended already."""
    parent, *command = sys.argv[1:]
    end_with_parent()
    if os.getppid() != int(parent):
        raise SystemExit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
