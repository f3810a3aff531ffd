"""Run a stage in a process forked from one that has imported the heavy libraries already.

A run has one or two dozen short stages, and each would import torch, scikit-learn, MLflow or Great Expectations anew,
which takes longer than its work. The first of them starts a server (`warm_server`) in the background, which imports the
libraries of all stages and then forks for each later stage. The stage has the terminal, folder and environment of the
process that asks, ends with it, and the process that asks exits as the stage did. The server ends after a minute
without work. Where anything about it fails, the stage runs in its own process as it does without a server.

`EXPUNGE_WARM=0` in the environment turns this off. It exists on Linux only, which has `pidfd_open`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from expunge.system.quiet import QUIET

SWITCH = "EXPUNGE_WARM"
PREFIX = "expunge.stages."
# They use a server, but do not start one.
DVC = tuple(f"expunge.system.dvc_{name}" for name in ("command", "commit", "query"))
READY = b"R"
PATIENCE = 0.3  # seconds that a stage waits for a server that is still importing
LONGEST = 100  # bytes of a socket's path; the system allows 107

# These differ between the commands of one run, and no library reads them while it is imported.
OWN = {"PWD", "OLDPWD", "SHLVL", "_", "COLUMNS", "LINES"}
# MLflow reads these when it is used. A command that has imported expunge.tracking has some of them from there.
OWN |= {"MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"}
OWN |= {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"}
# A command that has imported scikit-learn and MLflow has these from them, as the server has.
OWN |= {"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "_MLFLOW_TELEMETRY_SESSION_ID", *QUIET}
RIGHTS = ("Cap", "NoNewPrivs", "Seccomp")
OWN_PREFIXES = ("DVC_", "EXPUNGE_", "PREFECT__")


def hand_over(command: Sequence[str]) -> None:
    """Run the stage of `command` in a fork of the server, and exit as it does.

    `command`: `sys.orig_argv`. Returns if the command is not exactly `python -m expunge.stages.NAME ...` or one of DVC,
    or if no server is ready. In the latter case a stage starts a server for the stages that follow.
    """
    if not _served(command):
        return
    with socket.socket(socket.AF_UNIX) as connection:
        if not _connected(connection, starts=command[2] not in DVC):
            return
        with contextlib.suppress(OSError):
            if connection.recv(1) == READY:
                connection.settimeout(None)
                run_there(connection, command[2], command[3:])


def get_ready() -> None:
    """Start a server if none listens, so that it can import while the caller still checks something else."""
    if os.environ.get(SWITCH) != "0" and supported():
        with socket.socket(socket.AF_UNIX) as connection:
            _connected(connection, starts=True)


def _connected(connection: socket.socket, starts: bool) -> bool:
    """Connect to the server and return whether one listens; if none does and `starts`, start one."""
    connection.settimeout(PATIENCE)
    try:
        place = socket_path()
    except OSError:
        return False
    try:
        connection.connect(os.fspath(place))
    except OSError:  # nobody listens there
        if starts:
            start_server(place)
        return False
    return True


def _served(command: Sequence[str]) -> bool:
    known = len(command) > 2 and command[1] == "-m" and (command[2].startswith(PREFIX) or command[2] in DVC)
    return known and os.environ.get(SWITCH) != "0" and supported()


def supported() -> bool:
    """Return whether this system lets a server wait for its stages. Some sandboxes and old kernels do not."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def socket_path() -> Path:
    """Return the path of the server's socket, in a folder that only this user can enter.

    Raises OSError if somebody else owns the folder or the path is too long for a socket.
    """
    home = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"expunge-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    there = home.lstat()
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid() or stat.S_IMODE(there.st_mode) != 0o700:
        raise PermissionError(f"{home}: not a private folder of this user")
    path = home / _inherited()
    if len(os.fsencode(path)) > LONGEST:
        raise OSError(f"{path}: too long for a socket")
    return path


def _inherited() -> str:
    """Return a digest of what a fork inherits and cannot change. Only processes that agree on it share a server."""
    own = Path("/proc/self")
    libraries = sys.path[1:]  # the first is the working folder
    environment = {n: v for n, v in os.environ.items() if n not in OWN and not n.startswith(OWN_PREFIXES)}
    everything = (
        [sys.executable, sys.version, sys.flags, sorted(sys.warnoptions)],
        [(path, os.stat(path).st_mtime_ns) for path in libraries if os.path.exists(path)],
        sorted(environment.items()),
        [os.readlink(link) for link in sorted((own / "ns").iterdir())],
        [os.readlink(own / "root"), (own / "cgroup").read_text(), (own / "limits").read_text()],
        [line for line in (own / "status").read_text().splitlines() if line.startswith(RIGHTS)],
        [os.getresuid(), os.getresgid(), os.getgroups(), sorted(os.sched_getaffinity(0))],
        os.getpriority(os.PRIO_PROCESS, 0),
    )
    return hashlib.sha256(repr(everything).encode()).hexdigest()[:24]


def start_server(place: Path) -> None:
    """Start a server in the background. It ends at once if another has the place."""
    subprocess.Popen(
        [sys.executable, "-m", "expunge.system.warm_server", os.fspath(place)],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def run_there(connection: socket.socket, module: str, arguments: Sequence[str]) -> None:
    """Ask the server to run `module`, wait, and exit as it did. Returns if the server could not fork."""
    wanted = {
        "module": module,
        "arguments": list(arguments),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "umask": _umask(),
    }
    message = json.dumps(wanted).encode()
    socket.send_fds(connection, [len(message).to_bytes(4, "big")], [0, 1, 2])
    connection.sendall(message)
    if not (answer := connection.recv(4)):
        return
    pid = int.from_bytes(answer, "big")
    with _forwarded(pid):
        answer = connection.recv(4)
    if not answer:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        raise SystemExit("error: the process that the stage was forked from has ended; run the command again")
    _exit_as(int.from_bytes(answer, "big"))


@contextlib.contextmanager
def _forwarded(pid: int) -> Iterator[None]:
    """Forward signals that ask this process to end to the stage, and wait for it.

    A terminal interrupts whole groups of processes, and DVC leaves an interrupt to the stage that it waits for.
    """

    def forward(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if number == signal.SIGINT else os.kill)(pid, number)

    asked = (n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN)
    before = {number: signal.signal(number, forward) for number in asked}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_as(status: int) -> None:
    """Exit with the exit code of a wait status, or by the signal that ended the stage."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    raise SystemExit(code)


def _umask() -> int:
    now = os.umask(0o077)
    os.umask(now)
    return now


if __name__ == "__main__":
    get_ready()
