"""Damaged files: turn whatever their parsers raise into one ExpungeError that names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from expunge.system.errors import ExpungeError, ManifestError

SHOWN = 200  # characters of a parser's message that are shown


@contextmanager
def reading(where: Path | str, way_out: str, error: type[ExpungeError] = ManifestError) -> Iterator[None]:
    """Convert exceptions of a body that only parses a file, since parsers of broken files raise nearly anything.

    Raises `error`, whose message names `where`, the original exception and the way out. An ExpungeError passes
    unchanged.
    """
    try:
        yield
    except ExpungeError:
        raise
    except Exception as e:
        text = " ".join(str(e).split())
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        raise error(f"{where}: damaged, or not what it should be ({type(e).__name__}: {shown}); {way_out}") from e
