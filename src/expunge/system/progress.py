"""Progress display: a rich bar on a terminal, elsewhere a plain line every few seconds."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0
# If the variable is `json`, lines of progress are JSON objects for programs that read the output:
# {"progress": share of the whole in [0, 1], "what": ..., "line": the text for people}
FORMAT_VARIABLE = "EXPUNGE_PROGRESS"


def log_message(message: str) -> None:
    """Write one line to stderr and flush it, because stages run behind pipes."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, total: int, unit: str, epoch: int = 0, epochs: int = 1) -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)`, and show the rate in `unit`/s and the time left. `epoch` of `epochs` counts from 0.

    rich itself honours NO_COLOR.
    """
    words = f"{what} epoch {epoch + 1}/{epochs}" if epochs > 1 else what
    if not total:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar(words, total, unit) as advance:
            yield advance
    else:
        with _lines(what, words, total, unit, (epoch, epochs)) as advance:
            yield advance


def descent_progress(what: str, goal: float) -> Callable[[float], None]:
    """Return a function that takes the norm of the gradient after each pass over the rows, and logs a line at times.

    `goal`: the norm at which the descent ends. The share of the way is counted on a logarithmic scale.
    """
    last, passes, first = time.monotonic(), 0, 0.0

    def advance(norm: float) -> None:
        nonlocal last, passes, first
        passes, first = passes + 1, max(first, norm)
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES and first > goal:
            share = math.log(first / max(norm, goal)) / math.log(first / goal)
            line = f"{what}: gradient norm {norm:.1e} after {passes:,} passes; ends at {goal:.1e}"
            _log_progress(what, share, line)
            last = time.monotonic()

    return advance


@contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance(n: int) -> None:
            bar.advance(task, n)
            speed = bar.tasks[task].speed
            bar.update(task, rate=f"{speed:,.0f} {unit}/s" if speed else "")

        yield advance


@contextmanager
def _lines(what: str, words: str, total: int, unit: str, part: tuple[int, int]) -> Iterator[Callable[[int], None]]:
    start = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done < total:
            rate = done / (now - start)
            line = f"{words}: {done:,}/{total:,} {unit}, {rate:,.0f}/s, {(total - done) / rate:.0f} s left"
            share = (part[0] + done / total) / part[1]
            _log_progress(what, share, line)
            last = now

    yield advance
    seconds = time.monotonic() - start
    line = f"{words}: {done:,} {unit} in {seconds:.1f} s ({done / max(seconds, 1e-9):,.0f}/s)"
    _log_progress(what, (part[0] + 1) / part[1], line)


def _log_progress(what: str, share: float, line: str) -> None:
    if os.environ.get(FORMAT_VARIABLE) == "json":
        line = json.dumps({"progress": round(min(share, 1.0), 4), "what": what, "line": line})
    log_message(line)
