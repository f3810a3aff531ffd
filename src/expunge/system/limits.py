"""Limits of what is read from outside, so that a faulty or malicious file cannot exhaust the memory.

`params.yaml` sets them in its section `limits`; `load_config` puts them into force for the process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from expunge.system.errors import DataError

PILLOW_PIXELS = 178_956_970  # above twice its own limit, Pillow refuses an image


@dataclass(frozen=True)
class InputLimits:
    """The limits and their defaults."""

    pixels: int = 100_000_000  # of one image, as its header declares: 300 MB as RGB
    characters: int = 1_000_000  # of one text
    archive_gib: int = 32  # of all arrays of an archive, as it declares them; they are held in memory
    list_mib: int = 256  # of a file of ids, subjects or new labels
    list_values: int = 2_000_000  # ids or subjects of one request

    @property
    def archive_bytes(self) -> int:
        """The limit of an archive in bytes."""
        return self.archive_gib << 30

    @property
    def list_bytes(self) -> int:
        """The limit of a list in bytes."""
        return self.list_mib << 20


DEFAULTS = InputLimits()
_in_force = DEFAULTS


def in_force() -> InputLimits:
    """Return the limits of this process: the defaults, unless `use` was called."""
    return _in_force


def use(limits: InputLimits) -> None:
    """Put other limits into force for this process."""
    global _in_force
    _in_force = limits


def refuse_large(file: Path) -> None:
    """Raise DataError if a list has more bytes than allowed."""
    size, most = file.stat().st_size, in_force().list_bytes
    if size > most:
        raise DataError(
            f"{file}: has {size:,} bytes, but at most {most:,} are allowed (limits.list_mib); split the list into "
            "several requests"
        )


def refuse_many(file: Path, count: int) -> None:
    """Raise DataError if a list has more values than allowed."""
    if count > (most := in_force().list_values):
        raise DataError(
            f"{file}: lists {count:,} values, but at most {most:,} are allowed (limits.list_values); split the list "
            "into several requests"
        )
