"""Build a promoter and a review from a workspace: its dataset, the registry in use, and the ledger.

Any version can be reviewed and promoted, whatever the current request of the workspace: keyed digests of the rows that
a version forgot are stored when it is registered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.data.schema import FORGET
from expunge.data.split import Split, described, parts_of
from expunge.ledger.forgotten import ForgottenRows
from expunge.ledger.ledger import Entry, Ledger
from expunge.promotion.predictors import original, predictor
from expunge.promotion.promoter import Promoter
from expunge.promotion.review import Review
from expunge.promotion.review_page import page
from expunge.report.comparison import ComparedRows, counts, predictions_of_parts
from expunge.report.evidence import read_logits
from expunge.system.errors import PromotionError
from expunge.system.files import MANIFEST, read_json, write_text
from expunge.system.paths import DATASET, EVALUATION, FORGOTTEN, LEDGER, MODELS, ORIGINAL, REGISTRATION, REVIEW, SPLIT
from expunge.tracking import CHALLENGER, FORGETS, Version, connect, evaluation_of, keep_page, servable_of
from expunge.training.original import present


class ReviewSession:
    """Reviews and promotes versions in the working directory.

    Raises PromotionError if no model is named or registered, and ManifestError if a review needs a dataset that is
    missing.
    """

    def __init__(self, model: str | None = None, ledger: Path = LEDGER) -> None:
        """`model`: name of the registered model; if omitted, the model that the last run registered."""
        self.name = model or registered_name()
        self._ledger = ledger

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset of the workspace."""
        return Dataset(DATASET, verify=False)

    @cached_property
    def split(self) -> Split | None:
        """The split of the workspace's current request; None if there is none, or if it is of another dataset."""
        if not (SPLIT / MANIFEST).is_file() or not (DATASET / MANIFEST).is_file():
            return None
        found = Split(SPLIT)
        return found if len(found.parts) == self.dataset.rows else None

    @cached_property
    def promoter(self) -> Promoter:
        """The promoter of the model, which knows the rows that earlier versions and the present request forget."""
        ledger, forgotten = Ledger(self._ledger), ForgottenRows(FORGOTTEN)
        if self.split is not None and self.split.corrections is None:
            ids = self.dataset.sample_ids()
            own = (ids[i] for i in self.split.rows(FORGET).tolist())
            forgotten = ForgottenRows(FORGOTTEN, self.split.request["digest"], own, present(self.dataset, ledger))
        return Promoter(connect(), self.name, ledger, forgotten, load_config().register.promote_level)

    def at_hand(self, request: str | None) -> bool:
        """Return whether `request` is the workspace's current request; its retrained models are then here."""
        return self.split is not None and self.split.request["digest"] == request

    def parts(self, request: str | None) -> NDArray[Any] | None:
        """Return the part of each dataset row under `request`, as str `(rows,)`; None if its rows are not known."""
        if self.split is not None and self.at_hand(request):
            return self.split.parts
        if request is None or not self.promoter.forgotten.knows(request):
            return None
        forget = self.promoter.forgotten.mask(request, self.dataset.sample_ids())
        return parts_of(self.dataset.labels(), self.dataset.splits(), forget)

    def review(self, which: str = CHALLENGER) -> Review:
        """Compare the version `which` with the champion, or with the original if nothing was promoted yet."""
        promoter = self.promoter
        findings = promoter.audit()
        challenger = promoter.version(which)
        champion = promoter.compared_with(challenger)
        serving, request = promoter.champion(), challenger.tags.get("request")
        rows = self.parts(request)
        parts: dict[str, ComparedRows] = {}
        if rows is not None:
            before = original(MODELS / ORIGINAL) if champion is None else predictor(servable_of(champion)[0])
            dataset = self.dataset
            if self.split is not None and self.at_hand(request):  # corrected rows are judged by their new labels
                dataset = dataset.with_labels(self.split.labels(dataset.labels()))
            parts = predictions_of_parts(before, predictor(servable_of(challenger)[0]), dataset, Parts(rows))
        evaluated = evaluation_of(promoter.client, challenger)
        return Review(
            champion=champion,
            challenger=challenger,
            forgets=(None if champion is None else self.forgets(champion), self.forgets(challenger)),
            serves=not findings and serving is not None and serving.version == challenger.version,
            evaluations=(
                evaluated.original if champion is None else evaluation_of(promoter.client, champion).own,
                evaluated.own,
                evaluated.retrained,
            ),
            parts=parts,
            retrained=_retrained(parts) if self.at_hand(request) else {},
            classes=self.dataset.class_names,
            failed=promoter.check(challenger),
            findings=findings,
        )

    def forgets(self, version: Version) -> str | None:
        """Describe what a version forgot: names of entire classes, and the number of other rows; None if not known."""
        if FORGETS in version.tags:
            return version.tags[FORGETS]
        parts = self.parts(version.tags.get("request"))
        return None if parts is None else described(parts, self.dataset)

    def promote(self, seen: Review, reason: str, after: str, who: str = "") -> Entry:
        """Make the reviewed version the champion, and store the page of the review with its run.

        `after`: the ledger's head at the time of the review. Raises the errors of `Promoter.promote`.
        """
        entry = self.promoter.promote(seen.challenger, reason, after, counts(seen.parts), who)
        keep_page(self.promoter.client, seen.challenger, self.write_page(seen))
        return entry

    def write_page(self, review: Review) -> Path:
        """Write the review as an HTML page with pictures, and return its path (`reports/review.html`)."""
        write_text(REVIEW, page(review, self.dataset))
        return REVIEW


@dataclass(frozen=True)
class Parts:
    """The part of every row, as str `(n,)`."""

    of_row: NDArray[Any]

    def rows(self, part: str) -> NDArray[np.int64]:
        """Return the positions of the rows of `part`, ascending."""
        return np.flatnonzero(self.of_row == part)


def registered_name() -> str:
    """Return the name of the model that the last run registered. Raises PromotionError if there is none."""
    if not REGISTRATION.is_file():
        raise PromotionError(f"{REGISTRATION}: nothing was registered here; run the pipeline, or give --model")
    name: str = read_json(REGISTRATION)["model"]
    return name


def _retrained(parts: dict[str, ComparedRows]) -> dict[str, NDArray[np.int64]]:
    """Return the first retrained model's predictions for the same rows, from the stored outputs of the evaluation."""
    found = sorted((EVALUATION / "references").glob("retrained-*.parquet"))
    if not found:
        return {}
    return {part: read_logits(found[0], p.rows).argmax(1).astype(np.int64) for part, p in parts.items()}
