"""The request in params.yaml, as opposed to those of batches. Once it is met, the pipeline has nothing to run."""

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
    """Return the training rows that the request in the text of a params.yaml names, as bool `(rows,)`.

    If it cannot be resolved, for example because its list is missing, all training rows are returned, so that the
    request does not count as met.
    """
    train: Mask = dataset.splits() == TRAIN
    asked = yaml.safe_load(params)["split"]
    try:
        named: Mask = select(dataset, train, asked["selector"], **{key: asked[key] for key in NAMED})
    except DataError:
        return train
    return named


def keep_split() -> None:
    """Commit the split of the batch to dvc.lock as the split of the request in params.yaml, which has no rows left.

    Called before the sweep, which removes the rows from the split and keeps up-to-date stages up to date.
    """
    if LOCK.is_file() and SPLIT_STAGE in yaml.safe_load(LOCK.read_text(encoding="utf-8")).get("stages", {}):
        dvc.run("commit", "--force", SPLIT_STAGE, error=RequestError)
