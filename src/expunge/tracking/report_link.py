"""The link to its run in the report that MLflow keeps with this run."""

from __future__ import annotations

from pathlib import Path

from markupsafe import escape

from expunge.system.addresses import is_http, shown
from expunge.tracking.runs import RunIds
from expunge.tracking.store import connect, refusals, tracking_uri

MARK = "<!-- run -->"  # where the report has room for the link


def log_linked_report(ids: RunIds, report: Path) -> None:
    """Log the report again, with the experiment and the run that hold it. The file itself does not change."""
    line = f'<p class="soft">In MLflow: {run_words(tracking_uri(), ids)}.</p>'
    text = report.read_text(encoding="utf-8").replace(MARK, line, 1)
    with refusals("logging the report"):
        connect().log_text(ids.parent, text, report.name)


def run_words(uri: str, ids: RunIds) -> str:
    """Return where the run is, as HTML: a link if the store at `uri` is a server."""
    words = f"experiment {ids.experiment}, run {ids.parent}"
    if not is_http(uri):
        return words
    address = f"{shown(uri).rstrip('/')}/#/experiments/{ids.experiment}/runs/{ids.parent}"
    return f'<a href="{escape(address)}">{words}</a>'
