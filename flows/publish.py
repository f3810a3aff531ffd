"""Publish a run's result for people and automations: a table, links, an event and, from a clone, a branch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.tasks import exponential_backoff

from expunge.evaluation.claims import claim_tags
from expunge.report.tables import headline, markdown, rows
from expunge.system.addresses import is_http, shown
from expunge.system.files import read_json
from expunge.system.paths import DATA_DOCS, REGISTRATION, REPORTS, SUMMARY
from expunge.workspaces.clones import push
from flows.naming import branch_of
from flows.stages import DONE, REGISTER

VERDICT, PROMOTED = "expunge.verdict", "expunge.promoted"


def publish(root: Path, outcome: dict[str, str]) -> None:
    """Publish the result as a table and as Markdown with links, and emit the verdict as an event if it is new."""
    if not (root / SUMMARY).is_file():
        return
    summary = read_json(root / SUMMARY)
    head, *body = rows(summary)
    head[0] = "method"
    create_table_artifact(
        key="unlearning-table",
        table=[dict(zip(head, row, strict=True)) for row in body],
        description=headline(summary).replace("**", ""),
    )
    create_markdown_artifact(
        key="unlearning-result",
        markdown=f"{markdown(summary)}\n## Where to look\n\n{where_to_look(root)}\n",
        description="Every method beside original and retrained, and where to look",
    )
    if DONE in (outcome.get("compare"), outcome.get(REGISTER)):
        tell_verdict(root, summary)


def tell_verdict(root: Path, summary: dict[str, Any]) -> None:
    """Emit `expunge.verdict` about the registered model. It contains only claims, numbers, digests and names."""
    receipt = read_json(root / REGISTRATION) if (root / REGISTRATION).is_file() else {}
    selected = summary["selected"]
    verdict: dict[str, Any] = summary["methods"][selected]["verdict"] if selected else {}
    nothing = {"claims": "none", "utility": "cannot tell", "failed_gates": "not evaluated"}
    tags = claim_tags(verdict) if verdict else nothing
    name = receipt.get("model", "unregistered")
    emit_event(
        VERDICT,
        resource={
            "prefect.resource.id": f"expunge.model.{name}",
            "prefect.resource.name": name,
            "expunge.claims": tags["claims"],
            "expunge.registered": str(receipt.get("method") == selected and selected is not None).lower(),
        },
        payload={
            "method": selected,
            "claims": verdict.get("claims", {}),
            **{key: tags[key] for key in ("utility", "failed_gates")},
            "forget_rows": summary["request"]["forget_rows"],
            "request": summary["request"]["digest"],
        },
    )


def where_to_look(root: Path, run_id: str | None = None) -> str:
    """Return a Markdown list of the run in MLflow, the report, which holds the checks of the data, and Data Docs.

    Local files are given as paths, because browsers do not follow links from a server's page to local files.
    """
    lines = [f"- {what}: {link}" for what, link in mlflow_links(root, run_id)]
    report, docs = root / REPORTS / "report.html", sorted((root / DATA_DOCS).glob("**/index.html"))
    if report.is_file():
        lines.append(f"- HTML report on the worker, with the checks of the data at its end: `{report}`")
    lines += [f"- Data Docs on the worker, whose styles need internet: `{path}`" for path in docs]
    return "\n".join(lines)


def mlflow_links(root: Path, run_id: str | None = None) -> list[tuple[str, str]]:
    """Return links to the pipeline run of the last registered version, or of `run_id`, in the UI of the MLflow server.

    `EXPUNGE_MLFLOW_URL` is the server's address for browsers, if it differs from the worker's.
    """
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    base = os.environ.get("EXPUNGE_MLFLOW_URL") or tracking
    if not is_http(tracking):
        return [("MLflow", "`make ui` on the worker, then *Model training*")]
    from expunge.tracking import connect, find_version

    client, base = connect(), shown(base).rstrip("/")
    if run_id is None:
        receipt = read_json(root / REGISTRATION) if (root / REGISTRATION).is_file() else {}
        version = find_version(client, receipt["model"], receipt["content"]) if receipt.get("method") else None
        if version is None:
            return [("MLflow", f"[{base}]({base})")]
        run_id = version.run_id
    run = client.get_run(run_id)
    parent = run.data.tags.get("mlflow.parentRunId", run_id)
    page = f"{base}/#/experiments/{run.info.experiment_id}/runs/{parent}"
    return [("MLflow run", f"[{page}]({page})"), ("HTML report", f"[report.html]({page}/artifacts/report.html)")]


@task(
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=10),
    task_run_name="push",
)
def push_run(workspace: str) -> str:
    """Push data to the DVC remote, and dvc.lock, metrics and plots to a branch named after the run.

    Returns the branch.
    """
    branch = branch_of(flow_run.get_name() or "run")
    push(Path(workspace), branch)
    create_markdown_artifact(
        key="unlearning-branch",
        markdown=f"Run `git fetch origin {branch}` to get dvc.lock, and then `dvc pull` to get the data of this run.",
        description=f"Branch {branch}",
    )
    return branch
