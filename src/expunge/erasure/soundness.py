"""Check that the results, models and rows in the workspace are those that a certificate will describe.

The checks run when the run is judged and again before rows are erased. Each one raises an error that says what is wrong
and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from expunge.config import Config, load_config
from expunge.data.dataset import Dataset
from expunge.data.schema import TRAIN
from expunge.data.split import Split
from expunge.erasure.requests import Store
from expunge.erasure.selection import Rows
from expunge.features.store import FeatureStore
from expunge.methods.outputs import check_retrained
from expunge.models.checkpoint import load_classifier
from expunge.system.dvc_lock import LockDifference, differences, stages_of
from expunge.system.errors import ExpungeError, RequestError
from expunge.system.files import MANIFEST
from expunge.system.paths import DATASET, FEATURES, MODELS, ORIGINAL, SPLIT

LOCK = Path("dvc.lock")
RUNS = "python -m expunge.stages."


def results() -> None:
    """Check that the outputs of the pipeline are unchanged, and that every stage read the current outputs of others.

    Raises RequestError naming the first path that differs from dvc.lock, such as edited metrics, replaced weights, or
    an evaluation of weights other than those in the workspace.
    """
    if not LOCK.is_file():
        raise RequestError(
            f"{LOCK}: no such file, so nothing shows which run the results come from; run `dvc repro` to write it"
        )
    for found in found_differences():
        if not found.wrote:
            raise RequestError(
                f"{found.path}: not what the stage {found.stage} read when it ran (dvc.lock), so its results are those "
                "of other inputs. Remove the outputs of that stage and run `dvc repro`"
            )
        state = "changed since" if Path(found.path).exists() else "gone since"
        raise RequestError(
            f"{found.path}: {state} the stage {found.stage} wrote it (dvc.lock), so no certificate can be based on "
            "it. Remove it and run `dvc repro`, which restores it or computes it again"
        )


def found_differences() -> Iterator[LockDifference]:
    """Return the differences from dvc.lock for the stages that params.yaml asks for."""
    config = load_config()
    return differences({name: entry for name, entry in stages_of(LOCK, RUNS).items() if _of_params(name, config)})


def models() -> None:
    """Check that the retrained models were trained on the retained rows, and check the original.

    The description of the original must not contradict the record of its training. Raises CheckpointError.
    """
    config = load_config()
    if config.reference != "skip":
        check_retrained(Split(SPLIT), config.retrain.seeds)
    load_classifier(MODELS / ORIGINAL)


def fingerprints(store: Store, dataset: Dataset, rows: Mapping[str, Rows]) -> dict[str, str]:
    """Return for each request an HMAC over the ids, labels, splits and contents of its rows, under the request's key.

    Once the key is destroyed, no guess can be tested against the HMAC. `rows`: positions `(k,)` by request.
    """
    table = dataset.table(["sample_id", "label", "split", "digest"]).to_pydict()
    lines = [
        f"{id_}\n{label}\n{split}\n{content.hex()}" for id_, label, split, content in zip(*table.values(), strict=True)
    ]
    return {
        request: store.digest_under_key(request, [lines[i] for i in mine.tolist()]) for request, mine in rows.items()
    }


def changed(judged: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    """Return the requests whose rows differ from those that were judged; none if nothing was judged."""
    return [] if judged is None else sorted(request for request in now if judged.get(request) != now[request])


def check_untrained(dataset: Dataset, rows: NDArray[np.bool_]) -> None:
    """Check that `rows`, a mask of test rows, were no training rows when the original was trained. Raises RequestError.

    The features were computed after that training and say which rows it read. They lack rows that were erased since.
    """
    if not (FEATURES / ORIGINAL / MANIFEST).is_file():
        return
    store, ids = FeatureStore(FEATURES / ORIGINAL), dataset.sample_ids()
    wanted = {ids[i] for i in np.flatnonzero(rows)}
    trained = wanted & set(store.column("sample_id")[store.column("split") == TRAIN].tolist())
    if trained:
        raise RequestError(
            f"{len(trained)} of the {len(wanted)} requested rows are test rows now, but the original was trained on "
            "them: the data were divided differently then. Restore the section `data` of params.yaml, and run again"
        )


def contents(ids: list[str]) -> dict[str, str]:
    """Return the content digests (hex), by id, of the rows `ids` that are in the dataset.

    They go into the list for the sweep, which is removed after the sweep.
    """
    dataset, wanted = Dataset(DATASET, verify=False, erased="allow"), set(ids)
    table = dataset.table(["sample_id", "digest"])
    pairs = zip(table["sample_id"].to_pylist(), table["digest"].to_pylist(), strict=True)
    return {id_: digest.hex() for id_, digest in pairs if id_ in wanted}


def check_unchanged(batch: str, collected: Mapping[str, str]) -> None:
    """Check that the rows to erase have the same contents as when they were collected, or are all gone.

    Raises RequestError, which names no row.
    """
    now = contents(list(collected))
    other = sum(digest != collected[id_] for id_, digest in now.items())
    if other or 0 < len(now) < len(collected):
        raise RequestError(
            f"{batch}: {DATASET} was changed after its rows were collected: of {len(collected)} rows {other} have "
            f"other contents and {len(collected) - len(now)} are gone, so the model forgot other rows than would "
            f"be erased. Run `dvc checkout --force {DATASET}`, then run again"
        )


def check_erased_absent() -> None:
    """Check, before the certificate is signed, that no erased row is in the dataset. Raises RequestError."""
    if not (DATASET / MANIFEST).is_file():
        return
    try:
        Dataset(DATASET)
    except ExpungeError as e:
        raise RequestError(f"nothing is certified: {e}") from None


def _of_params(stage: str, config: Config) -> bool:
    """Return whether params.yaml still asks for this stage: dvc.lock keeps the entries of removed methods and seeds."""
    _, found, item = stage.partition("@")
    return not found or item in {*config.methods, *map(str, config.retrain.seeds)}
