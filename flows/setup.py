"""`expunge deploy`: work pool, deployments of prefect.yaml, one concurrency limit per workspace, automations.

Deployments of one workspace share a limit of one run. Those tagged `approval` are exempt: a paused run gives up its
slot and would not get it back. `promote` is protected by the ledger instead. A run whose process was killed holds the
limit until the automation below misses its heartbeat and marks it as crashed; without automations a lease ends it after
five minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from prefect.automations import AutomationCore
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_URL
from prefect.workers.process import ProcessWorker

DEPLOYMENTS = Path("prefect.yaml")
POOL = "expunge"
APPROVAL = "approval"  # tag of deployments that wait for a person
PUSHING = ("pipeline", "nightly")
CLONES = ".expunge/clones"
# A worker started by `expunge worker` sends heartbeats every 30 seconds.
SILENCE = timedelta(seconds=95)


def main() -> None:
    """Create work pool, automation and deployments, as `expunge deploy` asks for on the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.setup", description="Deploy; see `expunge deploy --help`.")
    parser.add_argument("--name")
    parser.add_argument("--repository")
    parser.add_argument("--revision", default="main")
    parser.add_argument("--remote")
    parser.add_argument("--silence", type=float, default=SILENCE.total_seconds())
    given = parser.parse_args()
    if not PREFECT_API_URL.value():
        raise SystemExit(
            "error: there is no Prefect server to deploy to; run `prefect server start`, then "
            "`export PREFECT_API_URL=http://127.0.0.1:4200/api`"
        )
    spec = specification(given.name, given.repository, given.revision, given.remote)
    asyncio.run(pool_and_automation(timedelta(seconds=given.silence)))
    deploy(spec)
    asyncio.run(share_limit(spec, given.name or "workspace"))


def specification(name: str | None, repository: str | None, revision: str, remote: str | None) -> dict[str, Any]:
    """Return the deployments of prefect.yaml, changed if they are for a clone.

    For the worker's folder they are unchanged; for a clone they have a pull step and names of their own.
    """
    spec: dict[str, Any] = yaml.safe_load(DEPLOYMENTS.read_text(encoding="utf-8"))
    if repository is None:
        return spec
    workspace = name or "clone"
    spec["pull"] = [
        {
            "expunge.workspaces.clones.refresh": {
                "id": "clone",
                "repository": repository,
                "directory": "{{ $EXPUNGE_WORKSPACE }}/" + f"{CLONES}/{workspace}",
                "revision": revision,
                **({"remote": remote} if remote else {}),
            }
        },
        {"prefect.deployments.steps.set_working_directory": {"directory": "{{ clone.directory }}"}},
    ]
    for deployment in spec["deployments"]:
        if deployment["name"] in PUSHING:
            deployment["parameters"] = {**(deployment.get("parameters") or {}), "push": True}
        deployment["name"] = f"{workspace}-{deployment['name']}"
        for trigger in deployment.get("triggers", []):
            trigger["name"] += f" ({workspace})"
            names = trigger["match_related"]["prefect.resource.name"]
            trigger["match_related"]["prefect.resource.name"] = [f"{workspace}-{name}" for name in names]
    return spec


async def pool_and_automation(silence: timedelta) -> None:
    """Create the work pool if it is missing, and the automation that marks killed runs."""
    async with get_client() as client:
        template = ProcessWorker.get_default_base_job_template()
        with contextlib.suppress(ObjectAlreadyExists):
            await client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        await replace_automation(client, killed_runs(silence))


def killed_runs(silence: timedelta) -> AutomationCore:
    """Return the automation that marks a run as crashed.

    It applies to a run that sent a heartbeat and then, for `silence`, neither another one nor an event of ENDS.
    """
    return AutomationCore(
        name="expunge: mark killed runs as crashed",
        description="Their worker is gone. The next run of the workspace completes their work.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{s}" for s in ENDS)},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=silence,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Killed",
                force=False,
                message="No heartbeat: its process was killed. The next run of the workspace completes the work.",
            )
        ],
    )


ENDS = ("Completed", "Failed", "Crashed", "Cancelled", "Paused", "Suspended")


async def replace_automation(client: PrefectClient, automation: AutomationCore) -> None:
    """Create an automation in the place of those of the same name."""
    for old in await client.read_automations_by_name(automation.name):
        await client.delete_automation(old.id)
    await client.create_automation(automation)


def deploy(spec: dict[str, Any]) -> None:
    """Run `prefect deploy --all` on the specification, from the root of the repository, where the entrypoints are."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=".", prefix=".prefect-", encoding="utf-8") as file:
        yaml.safe_dump(spec, file, sort_keys=False)
        file.flush()
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", file.name]
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise SystemExit(done.stdout)


async def share_limit(spec: dict[str, Any], workspace: str) -> None:
    """Give all deployments of the workspace, except those that wait for people, a shared limit of one run."""
    name = f"expunge: {workspace}"
    async with get_client() as client:
        await client.upsert_global_concurrency_limit_by_name(name, limit=1)
        limit = await client.read_global_concurrency_limit_by_name(name)
        for deployment in spec["deployments"]:
            full = f"{deployment['entrypoint'].rpartition('.')[2]}/{deployment['name']}"
            if APPROVAL not in deployment.get("tags", []):
                found = await client.read_deployment_by_name(full)
                change = {"global_concurrency_limit_id": str(limit.id)}
                await client.request("PATCH", "/deployments/{id}", path_params={"id": found.id}, json=change)
            print(f"deployed {full}")


if __name__ == "__main__":
    main()
