"""The files that `dvc metrics`, `dvc exp` and `dvc plots` show: a metrics file per model and a CSV per plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from expunge.evaluation.claims import shown_words
from expunge.report.metrics import lookup, some
from expunge.report.tables import candidates

# Name -> path in a block of the summary. Names are short, because they are the columns of a table.
METRICS = {
    "test_retain": "accuracy.test_retain",
    "test_forget": "accuracy.test_forget",
    "kl": "divergence.forget.kl",
}
# Each metric is one file, `PATH.csv`, and one plot. dvc.yaml must list the same files.
PLOTS = some(
    "accuracy.retain",
    "accuracy.forget",
    "accuracy.test_retain",
    "accuracy.test_forget",
    "divergence.forget.kl",
    "divergence.forget.js",
    "membership.loss_auc",
    "membership.mia_lr_member",
)


def metrics(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return file name -> JSON of one model.

    The JSON has the accuracies on test rows, the KL from the retrained model on forgotten rows in nats, and the claims
    that were shown. Values that the run does not have are left out.
    """
    found = {}
    for name, block in candidates(summary):
        values = {short: value for short, path in METRICS.items() if (value := lookup(block, path)) is not None}
        verdict = block.get("verdict")
        shown = {} if verdict is None else {"shown": shown_words(verdict)}
        found[f"{name}.json"] = json.dumps({**values, **shown}, indent=2, sort_keys=True, allow_nan=False) + "\n"
    return found


def outcome(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the method that a run registers.

    It is written to a separate file, so that its column in `dvc exp show` has a short name; columns of the models'
    metrics include the path of the file.
    """
    return {"selected": summary["selected"] or "nothing"}


def plots(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return file name -> CSV `model,value` of one metric, without rows for missing values."""
    found = {}
    for metric in PLOTS:
        values = [(name, metric.value(block)) for name, block in candidates(summary)]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["model", "value"])
        writer.writerows([name, f"{value:.6g}"] for name, value in values if value is not None)
        found[f"{metric.path}.csv"] = out.getvalue()
    return found
