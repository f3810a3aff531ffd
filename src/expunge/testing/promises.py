"""What several checks of contracts share."""

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
    """What the product refuses in the body breaks the promise `what`: raises AssertionError with both."""
    try:
        yield
    except (ExpungeError, TypeError, ValueError, IndexError, KeyError, RuntimeError) as e:
        why = (str(e).strip().splitlines() or [""])[0]
        raise AssertionError(f"{what}: {type(e).__name__}: {why}") from e


@contextmanager
def other_chance(seed: int) -> Iterator[None]:
    """The global generators of Python, numpy and torch start elsewhere in the body, and as they were behind it: a
    result that changes with `seed` was drawn from one of them."""
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
    """Where the global generators of Python and numpy stand."""
    numpy: Any = np.random.get_state(legacy=False)
    return random.getstate(), numpy["state"]["key"].tobytes(), numpy["state"]["pos"]


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below `directory`, by its path there."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def differing(first: dict[str, bytes], second: dict[str, bytes]) -> list[str]:
    """Names of files that only one has, or that hold other bytes."""
    return [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]
