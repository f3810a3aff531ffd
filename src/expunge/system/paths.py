"""Paths of the files of a run, relative to the root of the repository, as in dvc.yaml."""

import os
from pathlib import Path

DATASET = Path("data/dataset")
SPLIT = Path("data/split")
FEATURES = Path("data/features")
ACTIVATIONS = Path("data/activations")
EVALUATION = Path("data/evaluation")
RAW = Path("data/raw")
MODELS = Path("models")
ORIGINAL = "original"
RETRAINED = "retrained"  # a folder with one model per seed
REFERENCES = "references"  # the evaluation of original and retrained models
UNLEARNED = MODELS / "unlearned"
REPORTS = Path("reports")
CODE = REPORTS / "code.json"
VALIDATION = REPORTS / "validation"
COST = REPORTS / "cost"
SHADOW = Path("data/shadow")
SHADOW_REPORT = REPORTS / "shadow.json"
METRICS = REPORTS / "evaluation"
DVC_METRICS = REPORTS / "metrics"  # a file per model
OUTCOME = REPORTS / "outcome.json"
DVC_PLOTS = REPORTS / "plots"
IN_GIT = (OUTCOME, DVC_METRICS, DVC_PLOTS)  # committed to git with dvc.lock; dvc.yaml has `cache: false` for them
SUMMARY = REPORTS / "summary.json"
AUDIT = REPORTS / "audit.json"  # audit of the serving version; no stage's output
REGISTRATION = REPORTS / "registration.json"
FIGURES = REPORTS / "figures"
REVIEW = REPORTS / "review.html"
DATA_DOCS = REPORTS / "data_docs"
FORGOTTEN = Path("data/forgotten")  # the rows that promoted versions had forgotten; no stage's output
LEDGER = Path("ledger.jsonl")
REQUESTS = Path("data/requests")  # files of ids and subjects, tracked by DVC
RECORDS = Path("records")  # requests, keys and certificates; no stage's output
KEYS = RECORDS / "keys"
CERTIFICATES = RECORDS / "certificates"
WORK = Path(".expunge")  # resumable work in progress; no stage's output

EXPERIMENTS = Path(".dvc/tmp/exps")  # where DVC runs experiments with --temp and from the queue


def workspace() -> Path:
    """Return the folder of what outlives a run: MLflow's default store, keyed digests of forgotten rows, the ledger.

    This is the working directory (an empty path), but for an experiment that DVC runs in a folder of its own, which it
    deletes afterwards: there it is the workspace in which the experiment was started. DVC names it in `DVC_ROOT`.
    """
    started = Path(os.environ.get("DVC_ROOT", "."))
    return started if Path.cwd().is_relative_to((started / EXPERIMENTS).resolve()) else Path()


def retrained(seed: int) -> str:
    """Return the path of a retrained model below `models/` and `data/features/`."""
    return f"{RETRAINED}/{seed}"
