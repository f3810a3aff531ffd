"""The terminal on which results are printed."""

from __future__ import annotations

from rich.console import Console


def console(width: int = 170) -> Console:
    """Return a console as wide as the terminal, or of `width` columns in a pipe, for which rich assumes 80.

    Class names, reasons and other texts are not parsed as markup, and numbers in them are not coloured.
    """
    out = Console(highlight=False, markup=False)
    return out if out.is_terminal else Console(width=width, highlight=False, markup=False)
