"""Run programs where nothing outside this machine can be reached, and record what they try to reach.

`unshare -rn` gives a process a network of its own that has loopback only. It needs no rights. The record is written by
an audit hook in every Python process, so a connection that fails is seen too.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

ALONE = ("unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
# Python imports a module of this name at its start.
RECORDER = """
import os, socket, sys
NEAR = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "", socket.gethostname())
def tell(event, arguments):
    place = arguments[1] if event == "socket.connect" else arguments[:1] if event == "socket.getaddrinfo" else ()
    if isinstance(place, tuple) and place and place[0] is not None:
        host = place[0].decode() if isinstance(place[0], bytes) else str(place[0])
        if host not in NEAR and not host.startswith("127."):
            with open(os.environ["RECORD_OF_CONNECTIONS"], "a") as record:
                record.write(f"{event} {host} by {sys.orig_argv}\\n")
sys.addaudithook(tell)
"""
# What keeps the tools from reporting usage. A user need not know these variables, so tests remove them.
QUIET = (
    "DO_NOT_TRACK",
    "MLFLOW_DISABLE_TELEMETRY",
    "GX_ANALYTICS_ENABLED",
    "PREFECT_SERVER_ANALYTICS_ENABLED",
    "DVC_NO_ANALYTICS",
    "ITERATIVE_DO_NOT_TRACK",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_OFFLINE",
)


@cache
def permitted() -> bool:
    """Return whether the kernel allows a network of our own."""
    try:
        return subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def environment(given: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return `given` without the variables of QUIET, with the recorder, whose file is `home/connections`."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "sitecustomize.py").write_text(RECORDER)
    (home / "connections").touch()
    path = f"{home}:{given['PYTHONPATH']}" if given.get("PYTHONPATH") else str(home)
    retained = {name: value for name, value in given.items() if name not in QUIET}
    return {**retained, "PYTHONPATH": path, "RECORD_OF_CONNECTIONS": str(home / "connections")}


def run(command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command without outside connections if that is permitted, else with them."""
    alone = ALONE if permitted() else ()
    return subprocess.run([*alone, *command], cwd=cwd, env=env, text=True, capture_output=True)
