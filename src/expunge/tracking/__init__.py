"""Runs and registered models in MLflow. Only this package and serving/pyfunc.py import MLflow.

May import data, evaluation, methods, models, report, serving and system.
Start with `runs.py` and `registry.py`.
"""

import os

# Set before mlflow is first imported: no telemetry, and no output between that of the stages.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# A server that restarts is waited for, about a minute per call. MLflow's own 7 attempts take four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")

from mlflow import MlflowClient

from expunge.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    Submission,
    Version,
    aliased,
    drop_alias,
    find_version,
    model_name,
    move_alias,
    register_model,
    version_of,
    write_receipt,
)
from expunge.tracking.runs import Detail, LoggedDataset, RunIds, log_pipeline_run, metrics_of
from expunge.tracking.store import connect, preflight, tracking_uri
from expunge.tracking.versions import (
    CORRECTS,
    FORGETS,
    RETRAINED,
    Evaluation,
    description_of,
    drop_tag,
    evaluation_of,
    keep_certificate,
    keep_entry,
    keep_page,
    ledger_entries,
    models_of_ours,
    run_of_retrained,
    servable_of,
    set_tag,
)

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "CORRECTS",
    "FORGETS",
    "RETRAINED",
    "Detail",
    "Evaluation",
    "LoggedDataset",
    "MlflowClient",
    "RunIds",
    "Submission",
    "Version",
    "aliased",
    "connect",
    "description_of",
    "drop_alias",
    "drop_tag",
    "evaluation_of",
    "find_version",
    "keep_certificate",
    "keep_entry",
    "keep_page",
    "ledger_entries",
    "log_pipeline_run",
    "metrics_of",
    "model_name",
    "models_of_ours",
    "move_alias",
    "preflight",
    "register_model",
    "run_of_retrained",
    "servable_of",
    "set_tag",
    "tracking_uri",
    "version_of",
    "write_receipt",
]
