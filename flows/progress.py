"""Progress artifacts of long stages, from the JSON lines that `expunge.system.progress` writes for a flow."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from typing import NamedTuple
from uuid import UUID

from httpx import TransportError
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectHTTPStatusError

# A server that does not answer for a moment must not end a stage, so its bar stays as it is.
AWAY = (TransportError, PrefectHTTPStatusError)
SECONDS = 5.0  # shorter stages get no bar, and a bar is updated no more often


class Entry(NamedTuple):
    """One line of progress: what is done, the share of it that is complete in [0, 1], and the line for people."""

    what: str
    share: float
    line: str


def entry_of(line: str) -> Entry | None:
    """Return the progress that a line of a stage reports as JSON; None for any other line."""
    if not line.startswith('{"progress"'):
        return None
    try:
        found = json.loads(line)
        return Entry(str(found["what"]), float(found["progress"]), str(found["line"]))
    except (ValueError, KeyError, TypeError):  # for example because two processes wrote into one line
        return None


class Progress:
    """Progress bar of one task. It appears after the task has taken SECONDS."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._artifact: UUID | None = None
        self._last = time.monotonic()

    def see(self, entry: Entry) -> None:
        """Show the progress that a line reports, at most once in SECONDS."""
        if time.monotonic() - self._last < SECONDS:
            return
        self._last = time.monotonic()
        with suppress(*AWAY):
            self._show(f"{self._what}: {entry.what}", round(100 * entry.share, 1))

    def _show(self, description: str, percent: float) -> None:
        if self._artifact is None:
            key = re.sub(r"[^a-z0-9]+", "-", f"progress {self._what}".lower()).strip("-")
            artifact = create_progress_artifact(percent, key=key, description=description)
            assert isinstance(artifact, UUID)  # it is a coroutine only if there is an event loop
            self._artifact = artifact
        else:
            update_progress_artifact(self._artifact, percent, description=description)

    def end(self) -> None:
        """Show that the task is done, if a bar was shown."""
        if self._artifact is not None:
            with suppress(*AWAY):
                update_progress_artifact(self._artifact, 100.0, description=f"{self._what}: done")
