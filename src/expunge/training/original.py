"""The classifier that requests start from: its digest, and whether it was trained on rows that were erased later."""

from __future__ import annotations

from expunge.data.dataset import Dataset
from expunge.ledger.forgotten import label_pairs
from expunge.ledger.ledger import SWEEP, Ledger
from expunge.models.checkpoint import WEIGHTS
from expunge.system.files import read_manifest
from expunge.system.paths import MODELS, ORIGINAL


def original_digest() -> str:
    """Return `sha256:...` of the original's weights; "" if there is no original."""
    directory = MODELS / ORIGINAL
    files = read_manifest(directory, verify=False)["files"] if directory.is_dir() else {}
    return "sha256:" + files[WEIGHTS]["sha256"] if WEIGHTS in files else ""


def remembers_erased(ledger: Ledger) -> bool:
    """Whether the current original was trained on rows that were erased, or on labels that were corrected, since then.

    The sweeps in the ledger say so.
    """
    return original_digest() in {e.facts.get("original") for e in ledger.entries() if e.kind == SWEEP}


def present(dataset: Dataset, ledger: Ledger) -> list[str] | None:
    """Return the ids and label pairs of `dataset`, which the original was trained on; None if it saw others as well.

    They are the argument `present` of `ForgottenRows`.
    """
    if remembers_erased(ledger):
        return None
    ids = dataset.sample_ids()
    return [*ids, *label_pairs(ids, dataset.labels().tolist(), dataset.class_names)]
