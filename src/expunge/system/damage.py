"""Damaged files: what their parsers let out becomes one error of ours that names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from expunge.system.errors import ExpungeError, ManifestError

SHOWN = 200  # characters of what a parser says


@contextmanager
def reading(where: Path | str, way_out: str, error: type[ExpungeError] = ManifestError) -> Iterator[None]:
    """For bodies that only parse what stands in a file: parsers of broken files raise nearly anything. Raises `error`,
    which names `where`, what was raised and the way out; errors of ours pass as they are."""
    try:
        yield
    except ExpungeError:
        raise
    except Exception as e:
        said = " ".join(str(e).split())
        shown = said if len(said) <= SHOWN else f"{said[:SHOWN]}..."
        raise error(f"{where}: damaged, or not what it should be ({type(e).__name__}: {shown}); {way_out}") from e
