"""Whether what a certificate is about to say is true of what lies here: results, models and rows.

Everything that a certificate rests on is looked at when the run is judged, and again before rows are erased. Each check
raises an error that says what is wrong and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from expunge.config import Config, load_config
from expunge.data.dataset import Dataset
from expunge.data.split import Split
from expunge.erasure.requests import Store
from expunge.erasure.selection import Mask
from expunge.system.dvc_lock import Difference, differences, stages_of
from expunge.system.errors import ExpungeError, RequestError
from expunge.system.files import MANIFEST
from expunge.system.paths import DATASET, MODELS, ORIGINAL, SPLIT

LOCK = Path("dvc.lock")
RUNS = "python -m expunge.stages."


def results() -> None:
    """What the pipeline wrote lies here as it wrote it, and every stage read what another one wrote.

    Raises RequestError naming the first output that differs from dvc.lock: edited metrics, exchanged weights, an
    evaluation of other weights than those that lie here.
    """
    if not LOCK.is_file():
        raise RequestError(f"{LOCK}: not here, so nothing shows which run the results are of; `dvc repro` writes it")
    for found in found_differences():
        if not found.wrote:
            raise RequestError(
                f"{found.path}: not what the stage {found.stage} read when it ran (dvc.lock), so its results are of "
                "something else; remove the outputs of that stage and run `dvc repro`"
            )
        state = "changed since" if Path(found.path).exists() else "gone since"
        raise RequestError(
            f"{found.path}: {state} the stage {found.stage} wrote it (dvc.lock), so no certificate can rest on it; "
            "remove what is there and run `dvc repro`, which brings it back or makes it again"
        )


def found_differences() -> Iterator[Difference]:
    """Of the stages that params ask for."""
    config = load_config()
    return differences({name: entry for name, entry in stages_of(LOCK, RUNS).items() if _of_params(name, config)})


def models() -> None:
    """The retrained models were trained on the retained rows, and the original's description does not contradict the
    record of its training. Raises CheckpointError."""
    from expunge.methods.outputs import check_retrained  # with torch, which a command that only looks does without
    from expunge.models.checkpoint import load_classifier

    config = load_config()
    if config.reference != "skip":
        check_retrained(Split(SPLIT), config.retrain.seeds)
    load_classifier(MODELS / ORIGINAL)


def fingerprints(store: Store, dataset: Dataset, rows: Mapping[str, Mask]) -> dict[str, str]:
    """For every request an HMAC over ids, labels, splits and contents of its rows, under its own key: once that is
    destroyed, nobody can test a guess against it. `rows`: a mask `(rows,)` by request."""
    table = dataset.table(["sample_id", "label", "split", "digest"]).to_pydict()
    lines = [
        f"{id_}\n{label}\n{split}\n{content.hex()}" for id_, label, split, content in zip(*table.values(), strict=True)
    ]
    return {
        request: store.digest_under_key(request, [lines[i] for i in np.flatnonzero(mask)])
        for request, mask in rows.items()
    }


def changed(judged: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    """Requests whose rows are not those that were judged; none where nothing was judged."""
    return [] if judged is None else sorted(request for request in now if judged.get(request) != now[request])


def contents(ids: list[str]) -> dict[str, str]:
    """Content digests (hex) of the rows with these ids, as far as they are in the dataset; for the sweep's own list,
    which is removed with it."""
    dataset, wanted = Dataset(DATASET, verify=False, erased="allow"), set(ids)
    table = dataset.table(["sample_id", "digest"])
    pairs = zip(table["sample_id"].to_pylist(), table["digest"].to_pylist(), strict=True)
    return {id_: digest.hex() for id_, digest in pairs if id_ in wanted}


def still(batch: str, collected: Mapping[str, str]) -> None:
    """The rows that are about to be erased hold what they held when they were collected, or are gone.

    Raises RequestError, which names no row.
    """
    now = contents(list(collected))
    other = sum(digest != collected[id_] for id_, digest in now.items())
    if other or 0 < len(now) < len(collected):
        raise RequestError(
            f"{batch}: {DATASET} was changed after its rows were collected: of {len(collected)} rows {other} have "
            f"other contents and {len(collected) - len(now)} are gone, so the model forgot others than would be "
            f"erased. `dvc checkout --force {DATASET}`, then run again"
        )


def erased_stay_away() -> None:
    """No erased row is in the dataset when the certificate is signed. Raises RequestError."""
    if not (DATASET / MANIFEST).is_file():
        return
    try:
        Dataset(DATASET)
    except ExpungeError as e:
        raise RequestError(f"nothing is certified: {e}") from None


def _of_params(stage: str, config: Config) -> bool:
    """Whether params still ask for this stage: dvc.lock keeps the entries of methods and seeds that were taken out."""
    _, found, item = stage.partition("@")
    return not found or item in {*config.methods, *map(str, config.retrain.seeds)}
