"""python -m expunge.system.dvc_command ARGUMENTS: `dvc ARGUMENTS`, in a fork of the warm process if there is one.

DVC's command line imports for 0.4 s, and a request starts it a dozen times. `warm` says how a command is handed over.
Unlike a stage, it starts no server: most single commands are not followed by others.
"""

import os
import sys

from expunge.system import parent, warm

warm.hand_over(sys.orig_argv)

from dvc.cli import main  # noqa: E402

if __name__ == "__main__":
    os.environ[parent.DVC_PROCESS] = str(os.getpid())
    sys.exit(main(sys.argv[1:]))
