"""Progress artifacts of long stages, read from the lines that `expunge.system.progress` writes."""

from __future__ import annotations

import re
import time
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

# "train epoch 3/15: 1,000/1,437 images, 800/s", "train epoch 3/15: loss 0.1", "extract: 500/1,797 images, 900/s"
LINE = re.compile(
    r"^(?P<what>[^:]+?)(?: epoch (?P<epoch>\d+)/(?P<epochs>\d+)[^:]*)?: (?:(?P<n>[\d,]+)/(?P<of>[\d,]+) )?"
)
SECONDS = 5.0  # a stage that is shorter needs no bar, and a bar needs no more updates


def share_of(line: str) -> tuple[str, float] | None:
    """What a line of progress is about and how much of it is done, in [0, 1]; None for any other line."""
    found = LINE.match(line)
    if found is None or not (found["epoch"] or found["n"]):
        return None
    inner = _number(found["n"]) / max(_number(found["of"]), 1) if found["n"] else 1.0
    if found["epoch"]:
        return found["what"], min((int(found["epoch"]) - 1 + inner) / max(int(found["epochs"]), 1), 1.0)
    return found["what"], min(inner, 1.0)


def _number(text: str) -> int:
    return int(text.replace(",", ""))


class Progress:
    """The bar of one task: it appears once the task has taken some seconds and says how far it is."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._artifact: UUID | None = None
        self._last = time.monotonic()

    def see(self, line: str) -> None:
        found = share_of(line)
        if found is None or time.monotonic() - self._last < SECONDS:
            return
        self._last = time.monotonic()
        description, percent = f"{self._what}: {found[0]}", round(100 * found[1], 1)
        if self._artifact is None:
            key = re.sub(r"[^a-z0-9]+", "-", f"progress {self._what}".lower()).strip("-")
            made = create_progress_artifact(percent, key=key, description=description)
            assert isinstance(made, UUID)  # a coroutine only where there is an event loop
            self._artifact = made
        else:
            update_progress_artifact(self._artifact, percent, description=description)

    def end(self) -> None:
        if self._artifact is not None:
            update_progress_artifact(self._artifact, 100.0, description=f"{self._what}: done")
