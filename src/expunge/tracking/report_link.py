"""The link to its run in the report that MLflow keeps with this run."""

from __future__ import annotations

from pathlib import Path

from markupsafe import escape

from expunge.system.addresses import shown
from expunge.tracking.runs import RunIds
from expunge.tracking.store import connect, refusals, tracking_uri

MARK = "<!-- run -->"  # where the report has room for the link


def log_linked_report(ids: RunIds, report: Path) -> None:
    """Log the report again, with the experiment and the run that hold it. The file itself does not change."""
    uri = tracking_uri()
    words = f"experiment {ids.experiment}, run {ids.parent}"
    if uri.startswith(("http://", "https://")):
        address = f"{shown(uri).rstrip('/')}/#/experiments/{ids.experiment}/runs/{ids.parent}"
        words = f'<a href="{escape(address)}">{words}</a>'
    text = report.read_text(encoding="utf-8").replace(MARK, f'<p class="soft">In MLflow: {words}.</p>', 1)
    with refusals("logging the report"):
        connect().log_text(ids.parent, text, report.name)
