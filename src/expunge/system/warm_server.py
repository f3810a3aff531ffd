"""python -m expunge.system.warm_server SOCKET: import the libraries of all stages, and fork for each stage that asks.

`warm` has the other side and says why. One thread serves all connections. A connection belongs to one stage: when its
other side closes, the stage is killed; when the stage ends, its wait status is sent.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.system.quiet import keep_quiet
from expunge.system.warm import PATIENCE, READY

IDLE = 60.0  # seconds without work after which the server ends
# What the stages and DVC import. None of these may leave a thread running, see `alone`.
LIBRARIES = (
    "dvc.cachemgr",
    "dvc.cli.parser",
    "dvc.data_cloud",
    "dvc.lock",
    "dvc.repo.artifacts",
    "dvc.repo.datasets",
    "dvc.repo.graph",
    "dvc.repo.index",
    "dvc.repo.metrics",
    "dvc.repo.open_repo",
    "dvc.repo.params",
    "dvc.repo.plots",
    "dvc.repo.stage",
    "dvc.rwlock",
    "dvc.updater",
    "dvc.utils.strictyaml",
    "dvc_data.hashfile.db.local",
    "networkx",
    "scmrepo.git.backend.dulwich",
    "pydantic",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "torch",
    "torch._dynamo",  # any optimizer imports it with its first step
    "sklearn.base",
    "sklearn.decomposition",
    "sklearn.manifold",
    "scipy.stats",
    "safetensors.torch",
    "great_expectations",
    "matplotlib.figure",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
)


_known: list[int] = []  # the exit code of the stage that this process has run


@dataclass
class Stage:
    """A forked stage and the connection to the process that waits for it."""

    pid: int
    ended: int  # a pidfd, readable when the process has ended
    connection: socket.socket


class Server:
    """Serves one socket. `serve` returns in the forked process, with what that has to run."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        self.stages: list[Stage] = []

    def serve(self, idle: float) -> dict[str, Any] | None:
        """Serve until `idle` seconds have passed without a stage. Returns None then, in a fork what it has to run."""
        while events := self.selector.select(None if self.stages else idle):
            for key, _ in events:
                if key.fileobj is self.listener:
                    if (wanted := self._accept()) is not None:
                        return wanted
                elif key.data in self.stages:
                    self._end(key.data, came_to_end=key.fd == key.data.ended)
        return None

    def _accept(self) -> dict[str, Any] | None:
        connection, _ = self.listener.accept()
        connection.settimeout(PATIENCE)
        try:
            connection.sendall(READY)
            wanted, files = _receive(connection)
        except (OSError, ValueError):  # the other side has lost patience and runs the stage itself
            connection.close()
            return None
        connection.settimeout(None)
        try:
            pid = os.fork() if alone() else -1
        except OSError:
            pid = -1
        if pid == 0:
            self._leave()
            connection.close()
            become(wanted, files)
            return wanted
        for file in files:
            os.close(file)
        if pid < 0:
            connection.close()
            return None
        with contextlib.suppress(OSError):  # the stage does the same, and either may come first
            os.setpgid(pid, pid)
        with contextlib.suppress(OSError):
            connection.sendall(pid.to_bytes(4, "big"))
        stage = Stage(pid, os.pidfd_open(pid), connection)
        self.stages.append(stage)
        for watched in (stage.ended, connection):
            self.selector.register(watched, selectors.EVENT_READ, stage)
        return None

    def _end(self, stage: Stage, came_to_end: bool) -> None:
        """Send the status of a stage that has ended. Kill the stage if the process that waits for it has ended."""
        if not came_to_end:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(stage.pid, signal.SIGKILL)
        _, status = os.waitpid(stage.pid, 0)
        with contextlib.suppress(OSError):
            stage.connection.sendall(status.to_bytes(4, "big"))
        self._forget(stage)

    def _forget(self, stage: Stage) -> None:
        for watched in (stage.ended, stage.connection):
            self.selector.unregister(watched)
        os.close(stage.ended)
        stage.connection.close()
        self.stages.remove(stage)

    def _leave(self) -> None:
        """Close what belongs to the server, in a fork."""
        self.selector.close()
        self.listener.close()
        for stage in self.stages:
            os.close(stage.ended)
            stage.connection.close()


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return what is wanted and the three open files. Raises OSError or ValueError if the other side has closed."""
    head, files, _, _ = socket.recv_fds(connection, 4, 3)
    try:
        if len(head) < 4 or len(files) < 3:
            raise ValueError("closed")
        left, parts = int.from_bytes(head, "big"), []
        while left:
            if not (part := connection.recv(min(left, 1 << 16))):
                raise ValueError("closed")
            parts.append(part)
            left -= len(part)
        return json.loads(b"".join(parts)), files
    except BaseException:
        for file in files:
            os.close(file)
        raise


def alone() -> bool:
    """Return whether this process runs one thread of Python, since a fork copies one thread, with the locks of all.

    The threads of OpenBLAS and jemalloc prepare for a fork themselves.
    """
    return threading.active_count() == 1


def become(wanted: dict[str, Any], files: list[int]) -> None:
    """Make this process what the process that asks would be: its group, files, folder, environment and modules."""
    os.setpgid(0, 0)
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    os.chdir(wanted["folder"])
    os.umask(wanted["umask"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    if not sys.flags.safe_path:
        sys.path[0] = wanted["folder"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    sys.argv = [wanted["module"], *wanted["arguments"]]
    sys.orig_argv = [sys.orig_argv[0], "-c", ""]  # the stage is in its process now, and is not handed over again
    for name in [name for name in sys.modules if name.split(".")[0] == "expunge"]:
        del sys.modules[name]  # the stage has its own code as it is now


def load() -> None:
    """Import the libraries. One that is not installed is left out."""
    keep_quiet()
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        # With the first model that it logs, MLflow reads the files of all installed packages, and keeps what it found.
        importlib.import_module("mlflow.utils.requirements_utils").warn_dependency_requirement_mismatches(["mlflow"])
    gc.collect()
    gc.freeze()  # a fork shares the objects as long as the collector does not touch them


def run(module: str) -> None:
    """Run a stage as `python -m` does, and leave as soon as its exit code is known and what it registered has run.

    The end of the interpreter would take as long as the imports of the stage, because it takes down all libraries.
    """
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        _known.append(0)
    except SystemExit as e:
        if not isinstance(e.code, str):
            _known.append(int(e.code or 0))
        raise


def _leave() -> None:
    """Exit if the exit code is known. Without it, the interpreter prints the exception and finds the code."""
    if _known:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(_known[0])


def main(place: Path) -> None:
    """Serve `place` unless another process does. In a fork, run the stage."""
    atexit.register(_leave)  # the handler that is registered first runs last
    with place.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        place.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(place))
            listener.listen()
            load()
            wanted = Server(listener).serve(IDLE)
            if wanted is None:
                place.unlink()
    if wanted is not None:
        run(wanted["module"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
