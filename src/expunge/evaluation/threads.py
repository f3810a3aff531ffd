"""Independent parts of an evaluation on several threads: NumPy and scikit-learn let others run while they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def beside(call: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return the results of `call` for each item, in order, on as many threads as torch uses."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(call, items))
