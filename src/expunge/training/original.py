"""The classifier that requests start from: which one it is, and whether it remembers rows that were erased since."""

from __future__ import annotations

from expunge.ledger.ledger import SWEEP, Ledger
from expunge.models.checkpoint import WEIGHTS
from expunge.system.files import read_manifest
from expunge.system.paths import MODELS, ORIGINAL


def original_digest() -> str:
    """`sha256:...` of the original's weights; "" where there is none."""
    directory = MODELS / ORIGINAL
    files = read_manifest(directory, verify=False)["files"] if directory.is_dir() else {}
    return "sha256:" + files[WEIGHTS]["sha256"] if WEIGHTS in files else ""


def remembers_erased(ledger: Ledger) -> bool:
    """Whether the original at hand is one that had been trained on rows before they were erased."""
    return original_digest() in {e.facts.get("original") for e in ledger.entries() if e.kind == SWEEP}
