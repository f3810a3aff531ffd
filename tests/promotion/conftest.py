"""Fixtures for the tests of promotion: a registry with real model versions, which is built once per session.

Every test gets its own copy of the database; the artifacts are shared.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from expunge.ledger.forgotten import ForgottenRows
from expunge.ledger.ledger import Ledger
from tests.served_models import CLASSES, affine, evaluated, mlp, pictures, write_model, write_unlearned
from tests.verdicts import REACHED, verdict_with

NAME = "expunge-test"
# Request B forgets all rows of A and one more. Request C does not contain all rows of A.
REQUESTS = {name: "sha256:" + name.lower() * 64 for name in "ABC"}
ROWS = {"A": ["r1", "r2"], "B": ["r1", "r2", "r3"], "C": ["r2", "r9"]}


@dataclass(frozen=True)
class Shelf:
    home: Path
    database: Path


def summary(request: str, method: str, level: str) -> dict:
    block = {"accuracy": {"retain": 0.9, "forget": 0.1}}
    failed = ["divergence.forget.kl"]
    return {
        "request": {"selector": "ids", "digest": REQUESTS[request], "forget_rows": len(ROWS[request])},
        "model": {"name": "resnet-small"},
        "references": {"original": block, "retrained": block, "logit_mask": block},
        "methods": {method: {**block, "verdict": verdict_with(REACHED[level], failed=failed)}},
        "selected": method,
    }


def put(home: Path, request: str, kind: str = "affine", level: str = "outputs", name: str = NAME):
    """Log a run and register its version, through the same functions as the register stage."""
    from expunge.system.files import write_json
    from expunge.tracking import LoggedDataset, Submission, log_pipeline_run, register_model

    shape = (12, 10, 3) if kind == "colour" else (12, 10, 1)
    classifier = write_model(home / "models" / kind, shape)
    map_ = (mlp if kind == "mlp" else affine)(classifier.card.feature_dim)
    write_unlearned(home / "models/unlearned" / kind, classifier, map_)
    found = summary(request, kind, level)
    write_json(home / "summary.json", found)
    ids = log_pipeline_run(
        found,
        experiment="test/small",
        run_name=f"forget {request}",
        description_md="",
        params={},
        tags={},
        dataset=LoggedDataset("pictures", "sha256:dd", {}),
        artifacts=[home / "summary.json"],
    )
    images = pictures(4, shape[: 2 if shape[2] == 1 else 3])
    return register_model(
        Submission(
            name=name,
            content=f"sha256:{request}{kind}{level}",
            run_id=ids.children[kind],
            method=kind,
            model_dir=home / "models" / kind,
            unlearned_dir=home / "models/unlearned" / kind,
            classes=CLASSES,
            inputs=images,
            expected=evaluated(classifier, map_, images),
            tags={
                "claims": ", ".join(REACHED[level]) or "none",
                "utility": "kept",
                "failed_gates": "divergence.forget.kl",
                "request": REQUESTS[request],
            },
            description_md="",
        )
    )


@pytest.fixture(scope="session")
def shelf(tmp_path_factory) -> Shelf:
    """Return a registry with five versions.

    They forget, in this order: A, A by another method, B, C, and A without any shown claim.
    """
    home = tmp_path_factory.mktemp("shelf")
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{home / 'mlflow.db'}"
    try:
        for request, kind, level in (
            ("A", "affine", "outputs"),
            ("A", "mlp", "outputs"),
            ("B", "affine", "features"),
            ("C", "affine", "backbone"),
            ("A", "affine", "none"),
        ):
            put(home, request, kind, level)
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI")
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
    return Shelf(home, home / "mlflow.db")


@pytest.fixture
def promoter(shelf, tmp_path, monkeypatch):
    """Return a promoter on a copy of the registry that knows the rows of all requests."""
    from expunge.promotion.promoter import Promoter
    from expunge.tracking import connect

    shutil.copy(shelf.database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    for name, rows in ROWS.items():
        ForgottenRows(tmp_path / "forgotten", REQUESTS[name], rows).keep(REQUESTS[name])
    forgotten = ForgottenRows(tmp_path / "forgotten")
    return Promoter(connect(), NAME, Ledger(tmp_path / "ledger.jsonl"), forgotten, "outputs")
