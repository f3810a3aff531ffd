"""Commands in processes that need not import everything again: one process imports, and a child of it runs each.

A stage that computes for a second spends two or three on imports, and a request runs thirty of them. `interpreter`
starts a process that imports once and then waits; in its place on the PATH stands a small `python` that asks it to
fork. The child is what a new process would be: the same code, arguments, directory and environment, an end of its own.
Where the waiting process is not ready or is gone, `python` is the real one.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# A pipe that the waiting process held would not end with the run that it belongs to.
NO_STREAMS: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
PATIENCE = 0.02  # seconds between two looks at a child
SERVED = ("expunge.", "dvc", "mlflow")
_active: list[tuple[Path, Callable[[], None]]] = []  # the client, and what starts its server

# Sends its arguments, directory, environment and three file descriptors; ends as the child ends.
CLIENT = """#!{python} -IS
import os, sys
python, place, served = {python!r}, {socket!r}, {served!r}
arguments = sys.argv[1:]
def cold():
    os.execv(python, [python, *arguments])
if arguments[:1] != ["-m"] or not arguments[1:2] or not arguments[1].startswith(served):
    cold()
import json, socket
asked = socket.socket(socket.AF_UNIX)
try:
    asked.connect(place)
    message = json.dumps([arguments[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(asked, [len(message).to_bytes(8, "big")], [0, 1, 2])
    asked.sendall(message)
except OSError:
    cold()
answer = asked.recv(1)
os._exit(answer[0] if answer else 70)
"""


def python() -> str:
    """The interpreter to start commands with: inside `interpreter` the warm one, which begins to import now."""
    if not _active:
        return sys.executable
    client, start = _active[-1]
    start()
    return str(client)


@contextmanager
def interpreter(modules: Sequence[str]) -> Iterator[None]:
    """Have `python()` and `python` on the PATH of DVC's commands start quickly, with `modules` imported beforehand.

    The import begins at the first command, so a run without any does not pay for it. A module that cannot be imported
    is left out. Nothing is kept: every command ends its own process. On Linux only: elsewhere libraries that are loaded
    here do not outlive a fork, and commands start as ever.
    """
    if sys.platform != "linux":
        yield
        return
    with tempfile.TemporaryDirectory(prefix="expunge-warm-") as tmp:
        place = Path(tmp) / "socket"
        client = Path(tmp) / "python"
        client.write_text(CLIENT.format(python=sys.executable, socket=str(place), served=SERVED), encoding="utf-8")
        client.chmod(0o700)
        started: list[subprocess.Popen[bytes]] = []

        def start() -> None:
            if not started:
                # A session of its own: Ctrl-C reaches the commands, which end, and then this process ends it.
                command = [sys.executable, "-m", __name__, str(os.getpid()), str(place), *modules]
                started.append(subprocess.Popen(command, start_new_session=True, **NO_STREAMS))

        _active.append((client, start))
        try:
            yield
        finally:
            _active.pop()
            for server in started:
                server.terminate()
                server.wait()


def serve(parent: int, place: str, modules: Sequence[str]) -> None:
    """Import, then fork a child for every command that asks, until `parent` is gone, which may be before the imports
    are done. Returns in a child, or at that end."""
    for module in modules:
        with suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # children do not look through, and so copy, what all of them share
    if os.getppid() != parent:
        return
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(place + ".tmp")
    listening.listen(64)
    os.rename(place + ".tmp", place)  # there once it answers
    while os.getppid() == parent:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not select.select([listening], [], [], 1.0)[0]:
            continue
        asked, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            return _attend(asked)
        asked.close()


def _attend(asked: socket.socket) -> None:
    """Fork the command, wait for it, say how it ended. A caller that is gone ends it."""
    head, descriptors, _, _ = socket.recv_fds(asked, 8, 3)
    size, message = int.from_bytes(head, "big"), b""
    while len(message) < size:
        message += asked.recv(size - len(message))
    child = os.fork()
    if child == 0:
        asked.close()
        return _become(descriptors, *json.loads(message))
    for descriptor in descriptors:
        os.close(descriptor)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if select.select([asked], [], [], PATIENCE)[0] and not asked.recv(1):
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
            os._exit(0)
    code = os.waitstatus_to_exitcode(status)
    with suppress(OSError):
        asked.sendall(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def _become(descriptors: Sequence[int], arguments: list[str], directory: str, environment: dict[str, str]) -> None:
    """Run `python -m ARGUMENTS` in this process, as if it had just begun."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(directory)
    if environment.get("PYTHONPATH") != os.environ.get("PYTHONPATH"):  # other code than what was imported
        os.execve(sys.executable, [sys.executable, "-m", *arguments], environment)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin, sys.stdout, sys.stderr = _stream(0, "rb"), _stream(1, "wb"), _stream(2, "wb")
    random.seed()
    sys.argv = list(arguments)
    sys.path[0] = directory
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    sys.exit(0)


def _stream(number: int, mode: str) -> io.TextIOWrapper:
    """Standard error is written line by line, as is what goes to a terminal."""
    raw = open(number, mode, closefd=False)  # noqa: SIM115 - for the life of the process
    return io.TextIOWrapper(raw, line_buffering=number == 2 or os.isatty(number))


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
