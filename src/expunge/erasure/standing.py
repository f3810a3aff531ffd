"""The request that stands in params.yaml, beside those that batches carry out: one that is met has nothing to run."""

from __future__ import annotations

from pathlib import Path

import yaml

from expunge.data.dataset import Dataset
from expunge.data.schema import TRAIN
from expunge.data.selectors import select
from expunge.erasure.selection import Mask
from expunge.system import dvc
from expunge.system.errors import DataError, RequestError

LOCK, SPLIT_STAGE = Path("dvc.lock"), "split"
NAMED = ("classes", "fraction", "file", "filter", "seed")


def rows_asked(params: str, dataset: Dataset) -> Mask:
    """Training rows that the request in the text of a params.yaml names: bool `(rows,)`.

    All of them where it cannot be resolved, say because its list is not here: it does not count as met then.
    """
    train: Mask = dataset.splits() == TRAIN
    asked = yaml.safe_load(params)["split"]
    try:
        named: Mask = select(dataset, train, asked["selector"], **{key: asked[key] for key in NAMED})
    except DataError:
        return train
    return named


def keep_split() -> None:
    """Let what the batch split count as the split of the request in params.yaml, of which nothing is left to forget.

    Called before the sweep, which takes the rows out of it and keeps what was up to date up to date.
    """
    if LOCK.is_file() and SPLIT_STAGE in yaml.safe_load(LOCK.read_text(encoding="utf-8")).get("stages", {}):
        dvc.run("commit", "--force", SPLIT_STAGE, error=RequestError)
