"""What a person sees of stages that run side by side: their lines, each with its stage, and what runs now.

On a terminal a bar and the running stages stand below the lines; rich itself honours NO_COLOR.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Display:
    """Shows how many of `total` stages are done, and which run."""

    def __init__(self, total: int) -> None:
        out = Console(highlight=False, markup=False)  # a line may have brackets and numbers of its own
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[of]}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=out, transient=True, disable=not out.is_terminal)
        self._total, self._done = total, 0
        self._running: dict[str, tuple[float, TaskID]] = {}
        self._all = self._progress.add_task("stages", total=total, of=f"0/{total}")

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def starts(self, name: str) -> None:
        """Show that a stage runs from now on."""
        self._running[name] = time.monotonic(), self._progress.add_task(f"  {name}", total=None, of="")
        self.line(name, "starts")

    def done(self, name: str) -> None:
        """Show that a stage has ended well."""
        seconds = self._ends(name)
        self._advance()
        self.line(name, f"done in {seconds:.1f} s ({self._done} of {self._total})")

    def failed(self, name: str, why: str) -> None:
        """Show that a stage has failed."""
        self.line(name, f"failed after {self._ends(name):.1f} s: {why}")

    def skipped(self, name: str) -> None:
        """Count a stage that DVC found up to date."""
        self._advance()

    def line(self, name: str, text: str) -> None:
        """Print a line of a stage. Several threads may call this."""
        self._progress.console.print(f"{name}: {text}", soft_wrap=True)

    def _ends(self, name: str) -> float:
        start, task = self._running.pop(name)
        self._progress.remove_task(task)
        return time.monotonic() - start

    def _advance(self) -> None:
        self._done += 1
        self._progress.update(self._all, advance=1, of=f"{self._done}/{self._total}")
