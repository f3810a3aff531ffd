"""The kind of a request, whole classes or rows; refusal of requests and inputs that a method does not support."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from expunge.finetune.loop import Index, Run
from expunge.models.preprocess import Preprocess
from expunge.system.errors import ConfigError, DataError


def forgotten_classes(run: Run) -> Index:
    """Return the classes of forgotten rows without a retained row, sorted, int64."""
    return np.setdiff1d(run.labels[run.forget], run.labels[run.retain])


def need_whole_classes(run: Run, why: str) -> Index:
    """Return the forgotten classes. Raises DataError when one has retained rows, or fewer than two are retained."""
    partly = np.intersect1d(run.labels[run.forget], run.labels[run.retain])
    name = type(run.options).__name__
    if len(partly):
        raise DataError(
            f"{name} is for whole classes, but class {partly[0]} keeps retained rows, and {why}. Use regun, "
            "fine-tune or relearn for single rows"
        )
    if len(run.retained_classes) < 2:
        raise DataError(
            f"{name} needs retained rows of at least two classes, but there are rows of {len(run.retained_classes)}"
        )
    return forgotten_classes(run)


def need_rows(run: Run, why: str) -> None:
    """Raise DataError when a whole class is forgotten."""
    whole = forgotten_classes(run)
    if len(whole):
        raise DataError(
            f"{type(run.options).__name__} is for single rows, but class {whole[0]} keeps no retained row, and "
            f"{why}. Use trew, relearn or delete for whole classes"
        )


def need_pixels(run: Run) -> Preprocess:
    """Return the preprocessing of the original's images. Raises ConfigError for a classifier that takes texts."""
    preprocess = run.original.preprocess
    if not isinstance(preprocess, Preprocess):
        raise ConfigError(
            f"{type(run.options).__name__} changes pixels, but this classifier takes texts; use another method"
        )
    return preprocess


def has_retained_rows(run: Run) -> Tensor:
    """Return `(C,)` bool on the run's device, True for classes with retained rows."""
    keep = torch.zeros(run.original.card.num_classes, dtype=torch.bool, device=run.device)
    keep[torch.from_numpy(run.retained_classes)] = True
    return keep
