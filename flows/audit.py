"""Weekly flow: check that the serving version is the approved one and still withstands the attacks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from pydantic import Field

from expunge.system.files import read_json
from expunge.system.paths import AUDIT
from flows.naming import when
from flows.publish import where_to_look
from flows.stages import StageFailedError, expunge, stream

AUDITED = "expunge.audited"
COLUMNS = {
    "gate": "gate",
    "then": "in its report",
    "now": "now",
    "target": "retrained",
    "worse_by": "worse by",
    "margin": "allowed",
}


class AuditError(RuntimeError):
    """The serving version is worse than its report, or is not the one that was approved; the message says how."""


def run_name() -> str:
    """Return the name of a flow run."""
    return f"audit of the serving version · {when()}"


@flow(name="audit", flow_run_name=run_name, log_prints=True)
def audit(
    workspace: str = ".",
    seeds: Annotated[int, Field(ge=1, le=100)] = 3,
    first_seed: int | None = None,
    model: str | None = None,
) -> str:
    """Attack the serving version again with fresh seeds and compare the results with the report of its registration.

    The attacks use the files that serve. The run fails if a gated value worsened beyond its margin, or if the registry
    disagrees with the ledger.

    Args:
        workspace: Folder with the data and models of the last run; "." is the deployment's own.
        seeds: Number of fresh seeds; the mean over them is compared.
        first_seed: The first seed, to repeat an audit; derived from today's date if left out.
        model: Name of the registered model; the one that the last run registered if left out.
    """
    root = Path(workspace).resolve()
    attack(str(root), seeds, first_seed, model)
    found = read_json(root / AUDIT)
    show(root, found)
    problems = [*found["worsened"], *found["ledger"]]
    serving = f"version {found['version']} of {found['model']}"
    emit_event(
        AUDITED,
        resource={
            "prefect.resource.id": f"expunge.model.{found['model']}",
            "prefect.resource.name": found["model"],
            "expunge.passed": str(not problems).lower(),
        },
        payload={"version": found["version"], "seeds": found["seeds"], "problems": problems},
    )
    if problems:
        raise AuditError(f"{serving}:\n" + "\n".join(f"- {problem}" for problem in problems))
    return f"{serving} is no worse than its report"


@task(cache_policy=NO_CACHE, task_run_name="attack")
def attack(workspace: str, seeds: int, first_seed: int | None, model: str | None) -> None:
    """Run `expunge attack` and stream its output. Succeeds if the command wrote a result, whatever the result is."""
    root = Path(workspace)
    (root / AUDIT).unlink(missing_ok=True)
    command = expunge("attack", "--seeds", str(seeds))
    command += ["--first-seed", str(first_seed)] if first_seed is not None else []
    command += ["--model", model] if model else []
    try:
        stream(command, root, "attack")
    except StageFailedError:
        if not (root / AUDIT).is_file():
            raise


def show(root: Path, found: dict[str, Any]) -> None:
    """Publish the comparison as a table, and as Markdown with links."""
    table = [
        {title: f"{row[key]:.3f}" if isinstance(row[key], float) else row[key] for key, title in COLUMNS.items()}
        | {"verdict": "worse" if row["worsened"] else "holds"}
        for row in found["compared"]
    ]
    create_table_artifact(key="audit-table", table=table, description="The serving version, then and now")
    problems = [f"- {problem}" for problem in [*found["worsened"], *found["ledger"]]]
    left_out = [f"- {row['gate']}: {row['reason']}" for row in found["left_out"]]
    seeds = ", ".join(str(s) for s in found["seeds"])
    parts = [
        f"# Version {found['version']} of {found['model']}",
        "**Worse than its report, or not what was approved:**\n\n" + "\n".join(problems)
        if problems
        else "The version is no worse than its report.",
        f"Seeds {seeds}. Distances are measured from the retrained models' values.",
        "Not compared:\n\n" + "\n".join(left_out) if left_out else "",
        "## Where to look\n\n" + where_to_look(root, found["run_id"]),
    ]
    create_markdown_artifact(
        key="audit-result", markdown="\n\n".join(filter(None, parts)), description="What the audit found"
    )
