"""The record of a model's training in its directory: how many rows of which dataset, and which weights.

    "trained_on": {"dataset": "sha256:...", "rows": "sha256:...", "count": 3235, "training": "full"}

`rows` is the digest of a set of rows (`expunge.data.split.request_digest`), which reveals no ids. The record is in
`manifest.json`, so that the description in `model.json` can be checked against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from expunge.models.classifier import ABOVE, ModelCard
from expunge.system.errors import CheckpointError, ManifestError
from expunge.system.files import MANIFEST, read_json

RECORD, FULL = "trained_on", "full"


def record(dataset: str, rows: str, count: int, training: str) -> dict[str, Any]:
    """Return the record: the digest of the dataset, that of the training rows, and `training` as in ModelCard."""
    return {"dataset": dataset, "rows": rows, "count": count, "training": training}


def refuse_contradiction(directory: Path, card: ModelCard, manifest: Mapping[str, Any]) -> None:
    """Raise CheckpointError if `card` contradicts the training record in `manifest`.

    It does if it states that the weights never saw a row that may be forgotten, but the record says that all weights
    were trained on such rows.
    """
    if card.saw_forget_data:
        return
    trained = manifest.get(RECORD) or {}
    if FULL in (card.training, trained.get("training")) or card.recipe is not None:
        rows = f" on {trained['count']:,} rows" if "count" in trained else ""
        raise CheckpointError(
            f"{directory}: saw_forget_data is false, but its training record says that all weights were "
            f"trained{rows}; set model.saw_forget_data: true, or run `dvc repro --force train`"
        )


def refuse_seen(checkpoint: Path, dataset: str) -> None:
    """Raise CheckpointError if the weights in the file `checkpoint` were trained on the dataset with this digest.

    The manifest next to the file records this. The function is called for weights that are declared never to have seen
    rows of the dataset.
    """
    try:
        trained = read_json(checkpoint.parent / MANIFEST).get(RECORD) or {}
    except (ManifestError, AttributeError):
        return  # there is no manifest, or another program wrote it
    if trained.get("dataset") == dataset and trained.get("training") in (FULL, ABOVE):
        raise CheckpointError(
            f"{checkpoint}: model.saw_forget_data is false, but these weights were trained on {trained['count']:,} "
            f"rows of this dataset ({checkpoint.parent / MANIFEST}); set model.saw_forget_data: true, or start from "
            "weights that never saw these rows"
        )


def refuse_other_rows(
    directory: Path, trained: Mapping[str, Any] | None, digest: Callable[[str], str], count: int
) -> None:
    """Raise CheckpointError unless the model in `directory` was trained on the expected rows, by its record `trained`.

    The record must have `count` rows, and their digest must be `digest(d)`, where d is the digest of the dataset in the
    record. That digest is used because a sweep changes the dataset but not the rows on which a model was retrained.
    """
    again = "remove it and run `dvc repro` to train it again on the retained rows"
    if trained is None:
        raise CheckpointError(f"{directory}: has no record of the rows that it was trained on; {again}")
    if trained.get("count") != count:
        raise CheckpointError(
            f"{directory}: was trained on {trained.get('count')} rows, but the split retains {count}, so it may have "
            f"seen the forgotten rows; {again}"
        )
    if trained.get("rows") != digest(str(trained.get("dataset"))):
        raise CheckpointError(
            f"{directory}: was not trained on the rows that the split retains, so it may have seen the forgotten "
            f"rows; {again}"
        )
