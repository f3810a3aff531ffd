"""From the files of a run to a promoter and a review: the data at hand, the registry in use, the ledger."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.data.split import Split
from expunge.ledger.forgotten import ForgottenRows
from expunge.ledger.ledger import SWEEP, Entry, Ledger
from expunge.promotion.predictors import original, predictor
from expunge.promotion.promoter import Promoter
from expunge.promotion.review import Review
from expunge.promotion.review_page import page
from expunge.report.comparison import Part, counts, side_by_side
from expunge.report.evidence import read_logits
from expunge.system.errors import PromotionError
from expunge.system.files import read_json, read_manifest, write_text
from expunge.system.paths import DATASET, EVALUATION, FORGOTTEN, LEDGER, MODELS, ORIGINAL, REGISTRATION, REVIEW, SPLIT
from expunge.tracking import CHALLENGER, connect, evaluation_of, keep_page, servable_of


class ReviewSession:
    """The working directory after a run. Raises ManifestError or PromotionError where something is not there."""

    def __init__(self, model: str | None = None, ledger: Path = LEDGER) -> None:
        """`model`: name of the registered model; the one the last run registered when left out."""
        self.name = model or registered_name()
        self.dataset = Dataset(DATASET, verify=False)
        self.split = Split(SPLIT)
        self._ledger = ledger

    @cached_property
    def promoter(self) -> Promoter:
        ids, ledger = self.dataset.sample_ids(), Ledger(self._ledger)
        forgotten = ForgottenRows(
            FORGOTTEN,
            self.split.request["digest"],
            (ids[i] for i in self.split.rows("forget").tolist()),
            None if remembers_erased(ledger) else ids,
        )
        return Promoter(connect(), self.name, ledger, forgotten, load_config().register.promote_level)

    def review(self, which: str = CHALLENGER) -> Review:
        """The version `which` beside the champion, or beside the original where nothing was promoted yet."""
        promoter = self.promoter
        challenger, champion = promoter.version(which), promoter.champion()
        before = original(MODELS / ORIGINAL) if champion is None else predictor(servable_of(champion)[0])
        parts = side_by_side(before, predictor(servable_of(challenger)[0]), self.dataset, self.split)
        evaluated = evaluation_of(promoter.client, challenger)
        return Review(
            champion=champion,
            challenger=challenger,
            evaluations=(
                evaluated.original if champion is None else evaluation_of(promoter.client, champion).own,
                evaluated.own,
                evaluated.retrained,
            ),
            parts=parts,
            retrained=_retrained(parts),
            classes=self.dataset.class_names,
            failed=promoter.check(challenger),
            findings=promoter.audit(),
        )

    def promote(self, seen: Review, reason: str, after: str) -> Entry:
        """Make the version of a review the champion, and keep the page of that review with its run. `after`: the
        ledger's head when the reviewer looked. Raises what `Promoter.promote` raises."""
        entry = self.promoter.promote(seen.challenger, reason, after, counts(seen.parts))
        keep_page(self.promoter.client, seen.challenger, self.write_page(seen))
        return entry

    def write_page(self, review: Review) -> Path:
        """The review as a page with pictures, `reports/review.html`."""
        write_text(REVIEW, page(review, self.dataset))
        return REVIEW


def original_digest() -> str:
    """`sha256:...` of the original's weights; "" where there is none."""
    from expunge.models.checkpoint import WEIGHTS

    directory = MODELS / ORIGINAL
    files = read_manifest(directory, verify=False)["files"] if directory.is_dir() else {}
    return "sha256:" + files[WEIGHTS]["sha256"] if WEIGHTS in files else ""


def remembers_erased(ledger: Ledger) -> bool:
    """Whether the original at hand is one that had been trained on rows before they were erased."""
    return original_digest() in {e.facts.get("original") for e in ledger.entries() if e.kind == SWEEP}


def registered_name() -> str:
    """The model that the last run registered. Raises PromotionError where none did."""
    if not REGISTRATION.is_file():
        raise PromotionError(f"{REGISTRATION}: nothing was registered here; run the pipeline, or give --model")
    name: str = read_json(REGISTRATION)["model"]
    return name


def _retrained(parts: dict[str, Part]) -> dict[str, NDArray[np.int64]]:
    """What the first retrained model says of the same rows, from the evaluation's own outputs."""
    found = sorted((EVALUATION / "references").glob("retrained-*.parquet"))
    if not found:
        return {}
    return {part: read_logits(found[0], p.rows).argmax(1).astype(np.int64) for part, p in parts.items()}
