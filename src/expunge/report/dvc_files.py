"""What `dvc metrics`, `dvc exp` and `dvc plots` show of a run: a metrics file per model, a CSV per plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from expunge.evaluation.claims import shown_words
from expunge.report.metrics import lookup, some
from expunge.report.tables import candidates

# Short names, because they are the columns of a table; paths in a block of the summary.
METRICS = {
    "test_retain": "accuracy.test_retain",
    "test_forget": "accuracy.test_forget",
    "kl": "divergence.forget.kl",
}
# Each is one file and one plot, `PATH.csv`; dvc.yaml lists the same.
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
    """File name -> JSON of one model: accuracies on test rows, KL from the retrained model on forgotten rows in nats,
    the claims that were shown. What the run does not have is left out."""
    found = {}
    for name, block in candidates(summary):
        values = {short: value for short, path in METRICS.items() if (value := lookup(block, path)) is not None}
        verdict = block.get("verdict")
        shown = {} if verdict is None else {"shown": shown_words(verdict)}
        found[f"{name}.json"] = json.dumps({**values, **shown}, indent=2, sort_keys=True, allow_nan=False) + "\n"
    return found


def outcome(summary: Mapping[str, Any]) -> dict[str, str]:
    """The one line of a run: the method that is registered. In a file of its own, so that its name in `dvc exp show` is
    short, where those of every model's metrics hold the path of the file."""
    return {"selected": summary["selected"] or "nothing"}


def plots(summary: Mapping[str, Any]) -> dict[str, str]:
    """File name -> CSV `model,value` of one metric; without rows where the run has no such value."""
    found = {}
    for metric in PLOTS:
        values = [(name, metric.value(block)) for name, block in candidates(summary)]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["model", "value"])
        writer.writerows([name, f"{value:.6g}"] for name, value in values if value is not None)
        found[f"{metric.path}.csv"] = out.getvalue()
    return found
