"""Run work in a process that kills itself with SIGKILL at a chosen moment, without any chance to clean up."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from sqlalchemy import Engine, event

# These events are requests to the file system. A process may die between any two of them.
ASKED = frozenset({"open", "os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"})

# The beginning of a `sitecustomize`, which Python imports at its start. `kill_at(event, words, whom)` kills the process
# `whom()` when this one asks for the `event`-th time (0: never) to write below its working folder, and notes `words`.
KILL_AT = (
    f"""
import os, signal, sys
HOME, ROOT, seen, ASKED = os.environ["KILLER"], os.getcwd(), 0, {sorted(ASKED)}
"""
    + """
def writes(name, arguments):
    if not os.path.abspath(os.fsdecode(arguments[0])).startswith(ROOT):
        return False
    return name != "open" or bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))

def kill_at(event, words, whom):
    def count(name, arguments):
        global seen
        if name in ASKED and isinstance(arguments[0], (str, bytes)) and writes(name, arguments):
            seen += 1
            if seen == event:
                with open(HOME + "/killed", "a") as killed:
                    killed.write(f"{words} {name} {arguments[0]}\\n")
                os.kill(whom(), signal.SIGKILL)

    sys.addaudithook(count)
"""
)


def in_a_child(
    work: Callable[[], object], until: int, asked: Callable[[str, str], bool], counts: Callable[[], bool] = lambda: True
) -> tuple[int, int]:
    """Run `work` in a process that is killed at its `until`-th event (0: never). Return status and number of events.

    An event is a request to the file system that `asked(name, path)` accepts, or a statement or commit of a database.
    It counts only while `counts()` is true.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        seen = 0

        def count(*_: object) -> None:
            nonlocal seen
            if counts():
                seen += 1
                if seen == until:
                    os.kill(os.getpid(), signal.SIGKILL)

        def hook(name: str, arguments: tuple) -> None:
            if name in ASKED and asked(name, str(arguments[0])):
                count()

        sys.addaudithook(hook)
        event.listen(Engine, "before_cursor_execute", count)
        event.listen(Engine, "commit", count)
        try:
            work()
            os.write(write, str(seen).encode())
        finally:
            os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        return status, int(pipe.read() or 0)
