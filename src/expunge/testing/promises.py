"""Helpers that several contract tests share."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.system.errors import ExpungeError


@contextmanager
def promised(what: str) -> Iterator[None]:
    """Turn an error in the body into an AssertionError that names the violated contract `what` and the error."""
    try:
        yield
    except (ExpungeError, TypeError, ValueError, IndexError, KeyError, RuntimeError) as e:
        why = (str(e).strip().splitlines() or [""])[0]
        raise AssertionError(f"{what}: {type(e).__name__}: {why}") from e


@contextmanager
def other_chance(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch in the body, and restore their states afterwards.

    A result that changes with `seed` was drawn from one of these generators.
    """
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def state_of_chance() -> tuple[Any, ...]:
    """State of the global generators of Python and numpy."""
    numpy: Any = np.random.get_state(legacy=False)
    return random.getstate(), numpy["state"]["key"].tobytes(), numpy["state"]["pos"]


def contents(directory: Path) -> dict[str, bytes]:
    """Content of every file below `directory`, by its path relative to it."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def differing(first: dict[str, bytes], second: dict[str, bytes]) -> list[str]:
    """Names of the files that exist on one side only or have different contents."""
    return [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]
