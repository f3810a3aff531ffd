"""Choose the version that a batch submits for approval: the registered product of a method, or the retrained model.

A retrained model is exact if its backbone was trained without the rows too; it is judged by the same gates as a method.
If no method qualifies, the retrained model is the product, provided that it was trained and qualifies. Otherwise there
is no product, and the requests are refused with the reasons.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.config import Config, load_config
from expunge.data.dataset import Dataset
from expunge.data.split import Split, described
from expunge.evaluation.claims import claim_tags, may_serve, shown_claims, shown_words, useful
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.checkpoint import load_classifier
from expunge.report.tables import failures
from expunge.system.files import digest_of, read_json, read_manifest
from expunge.system.git import git_state
from expunge.system.paths import DATASET, MODELS, REGISTRATION, REPORTS, SPLIT, SUMMARY, retrained
from expunge.tracking import (
    CORRECTS,
    FORGETS,
    RETRAINED,
    Submission,
    connect,
    find_version,
    register_model,
    run_of_retrained,
)
from expunge.tracking.examples import examples_with_answers
from expunge.tracking.provenance import lock_digest


@dataclass(frozen=True)
class Candidate:
    """A registered version: model name, version number, method, and the shown claims as written in its tag."""

    model: str
    version: str
    method: str
    claims: str


@dataclass(frozen=True)
class Refusal:
    """The reason why no version can be submitted for approval."""

    reason: str


def choose() -> Candidate | Refusal:
    """Return the product of the last run of the pipeline, or a Refusal.

    Calling it again for the same run returns the same version. Raises LookupError if the registry lacks the version
    that the run registered.
    """
    config, summary, receipt = load_config(), read_json(SUMMARY), read_json(REGISTRATION)
    method = summary["selected"]
    asked = config.register.promote_level
    if method is not None:
        verdict = summary["methods"][method]["verdict"]
        if may_serve(shown_claims(verdict), asked) and useful(shown_claims(verdict), verdict["utility"]):
            found = find_version(connect(), receipt["model"], receipt["content"])
            if found is None:
                raise LookupError(
                    f"{receipt['model']}: the version that the last run registered is not in this registry; run the "
                    "register stage again"
                )
            return Candidate(found.name, found.version, method, shown_words(verdict))
    if config.reference == "skip":
        return Refusal(
            f"{asked!r} was shown of no method ({failures(summary)}), and there is no retrained model that could take "
            "its place, because params.yaml has reference: skip"
        )
    verdict = summary["references"]["retrained"]["verdict"]
    if not may_serve(shown_claims(verdict), asked) or not useful(shown_claims(verdict), verdict["utility"]):
        return Refusal(
            f"{asked!r} was shown of no method ({failures(summary)}), nor of the retrained model: {verdict['why']}"
        )
    return _retrained(config, summary, receipt["model"])


def _retrained(config: Config, summary: dict[str, Any], name: str) -> Candidate:
    """Register the retrained model of the first seed, or reuse the version that has the same content."""
    seed, dataset, split = config.retrain.seeds[0], Dataset(DATASET), Split(SPLIT)
    words, tags = "Retrained without the rows", {FORGETS: described(split.parts, dataset)}
    if split.corrections is not None:
        count = len(split.corrections.rows)
        words, tags = (
            "Retrained on the new labels",
            {FORGETS: f"the labels of {count:,} rows", CORRECTS: str(count)},
        )
    directory = MODELS / retrained(seed)
    lock, request = lock_digest(), summary["request"]["digest"]
    inputs, expected = examples_with_answers("references", dataset, f"retrained-{seed}")
    with tempfile.TemporaryDirectory() as tmp:
        UnlearnedModel.of_classifier(load_classifier(directory), {}).save(Path(tmp))
        version = register_model(
            Submission(
                name=name,
                content=digest_of({"model": read_manifest(directory)["files"], "request": request}),
                run_id=run_of_retrained(connect(), request, lock),
                method=RETRAINED,
                model_dir=directory,
                unlearned_dir=Path(tmp),
                classes=dataset.class_names,
                inputs=inputs,
                expected=expected,
                tags={
                    **claim_tags(summary["references"]["retrained"]["verdict"]),
                    "verdict": f"{words}, because no method qualified. {failures(summary)}",
                    "request": request,
                    **tags,
                    "dvc_lock": lock,
                    **git_state(),
                },
                description_md=f"{words}. {failures(summary)}",
                documents=[REPORTS / "results.md", REPORTS / "model_card.md"],
                any_size=dataset.image_shape is None,
            )
        )
    return Candidate(version.name, version.version, RETRAINED, version.tags["claims"])
