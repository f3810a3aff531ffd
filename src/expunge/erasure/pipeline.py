"""The pipeline from the command line: `dvc repro` in the working directory, its output passed on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from expunge.errors import RequestError


def reproduce(stages: Sequence[str] = (), force: bool = False) -> None:
    """All stale stages, or `stages` alone, in this order. Raises RequestError when one fails."""
    single = ["--single-item"] if stages else []
    command = [sys.executable, "-m", "dvc", "repro", *single, *(["--force"] if force else []), *stages]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "DVC_NO_ANALYTICS": "1",
    }
    if subprocess.call(command, env=environment) != 0:
        raise RequestError("a stage of the pipeline failed, see above; mend what it says and run again")
