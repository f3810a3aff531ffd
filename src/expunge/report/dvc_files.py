"""What `dvc plots` shows of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from expunge.report.metrics import some
from expunge.report.tables import candidates

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
