"""The pipeline as a Prefect flow: one task per DVC stage, in the order of dvc.yaml.

`python -m flows.unlearn` runs it without a permanent Prefect server; a deployment runs the same function. DVC decides
what is stale, so a task whose stage is up to date ends at once. Tasks exchange only strings.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

from httpx import TransportError
from prefect import flow
from prefect.settings import PREFECT_API_URL
from pydantic import Field

from expunge.system import dvc
from expunge.system.addresses import hidden, shown
from expunge.workspaces.clones import unpushed
from flows.naming import about_request
from flows.publish import publish, push_run
from flows.request_form import Classes, Methods, set_params
from flows.side_by_side import run_side_by_side
from flows.stages import (
    CODE,
    REGISTER,
    PreflightError,
    Repro,
    StageFailedError,
    check,
    get_ready,
    run_stage,
    stage_names,
)

__all__ = ["PreflightError", "StageFailedError", "bring_up_to_date", "run_stage", "stage_names", "unlearn"]

Jobs = Annotated[int, Field(ge=1)]
Stages = Annotated[list[str] | None, Field(examples=[["fit@loft", "evaluate@loft", "compare"]])]


@flow(name="unlearn", flow_run_name=about_request, log_prints=True)
def unlearn(
    workspace: str = ".",
    stages: Stages = None,
    force: bool = False,
    push: bool = False,
    classes: Classes = None,
    methods: Methods = None,
    jobs: Jobs = 1,
) -> dict[str, str]:
    """Run the pipeline on the request in params.yaml, register the selected classifier and publish the result table.

    Runs are logged to MLflow. Stages that are up to date take no time.

    Args:
        workspace: Folder with dvc.yaml and params.yaml; "." is the deployment's own.
        stages: Stages to run, in this order, as `dvc stage list` names them; all of dvc.yaml if left out. The stage
            `code` runs before them, because it tells which of them have new code.
        force: Run the stages even if nothing changed since their last run.
        push: In a clone, push data to its DVC remote, and dvc.lock, metrics and plots to a branch named like this run.
        classes: Names or numbers of classes to forget, written to params.yaml; its own request if left out.
        methods: Entries of `fit` to run, written to params.yaml; its own if left out.
        jobs: How many stages may run at a time. The cores are divided by it unless OMP_NUM_THREADS is set.
    """
    set_params(Path(workspace).resolve(), classes, methods, push)
    return bring_up_to_date(Path(workspace).resolve(), stages, force, push, jobs)


def bring_up_to_date(
    root: Path, stages: list[str] | None = None, force: bool = False, push: bool = False, jobs: int = 1
) -> dict[str, str]:
    """Run one task per stage, then publish artifacts and the event. Returns what each stage did, by name.

    It must be called inside a flow run.
    """
    dvc.set_aside_cut_off(root)
    with ThreadPoolExecutor() as pool:
        warming, listed = pool.submit(get_ready, root), pool.submit(stage_names, root)
        check(root, registers=not stages or REGISTER in stages)
        every = listed.result()
        warming.result()
    names = [*([CODE] if CODE in every and CODE not in stages else []), *stages] if stages else every
    if jobs > 1:
        outcome = run_side_by_side(names, root, jobs, force)
    else:
        with Repro(names, root, force, every=not stages) as repro:
            outcome = {name: run_stage(name, repro) for name in names}
    publish(root, outcome)
    if push and unpushed(root):
        push_run(str(root))
    return outcome


def main() -> None:
    """Run the command line `python -m flows.unlearn`."""
    parser = argparse.ArgumentParser(description="Run the pipeline as a Prefect flow, one task per DVC stage.")
    parser.add_argument("--workspace", default=".", help="folder with dvc.yaml and params.yaml")
    parser.add_argument("--stages", nargs="+", help="run only `code` and these stages, in this order; by default all")
    parser.add_argument("--force", action="store_true", help="run stages even if nothing changed")
    parser.add_argument("--jobs", type=int, default=1, help="how many stages may run at a time; by default one")
    arguments = parser.parse_args()
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_traceback)
    try:
        unlearn(arguments.workspace, arguments.stages, arguments.force, jobs=arguments.jobs)
    except TransportError as e:
        address = PREFECT_API_URL.value() or "the temporary server"
        print(
            f"error: {shown(address)}: the Prefect server does not answer ({hidden(str(e), address)}). What the "
            "stages wrote is kept; start the server and run again to continue",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # Prefect would try for minutes to send its events to the server.


def _without_traceback(record: logging.LogRecord) -> bool:
    """Remove the traceback from a record about a server that does not answer; every record is kept."""
    if record.exc_info and isinstance(record.exc_info[1], TransportError):
        record.exc_info = None
    return True


if __name__ == "__main__":
    main()
