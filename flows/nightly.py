"""Nightly flow: bring the workspace up to date, or find that there is nothing to do."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from expunge.workspaces.clones import unpushed
from flows.naming import about_request
from flows.publish import push_run
from flows.stages import stale_stages
from flows.unlearn import bring_up_to_date


@flow(name="nightly", flow_run_name=about_request, log_prints=True)
def nightly(workspace: str = ".", push: bool = False) -> State[object]:
    """Run stale stages and those that depend on them.

    If nothing is stale, no stage is run. With `push`, results that an earlier run did not push are then pushed.

    Args:
        workspace: Folder with dvc.yaml and params.yaml; "." is the deployment's own.
        push: In a clone, push data to its DVC remote, and dvc.lock, metrics and plots to a branch named like this run.
    """
    root = Path(workspace).resolve()
    stale = stale_stages(root)
    if not stale and push and unpushed(root):
        return Completed(
            message=f"Nothing is stale. The results of an earlier run were pushed to {push_run(str(root))}."
        )
    if not stale:
        return Completed(name="Up to date", message="Nothing is stale, so no stage was run.")
    print(f"Stale: {', '.join(stale)}")
    outcome = bring_up_to_date(root, push=push)
    done = [name for name, what in outcome.items() if what == "done"]
    return Completed(message=f"{len(done)} of {len(outcome)} stages were run: {', '.join(done)}.")
