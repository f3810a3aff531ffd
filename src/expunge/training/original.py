"""The classifier that requests start from: its digest, and whether it was trained on rows that were erased later."""

from __future__ import annotations

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
    """Whether the current original was trained on rows before they were erased, by the ledger's sweeps."""
    return original_digest() in {e.facts.get("original") for e in ledger.entries() if e.kind == SWEEP}
