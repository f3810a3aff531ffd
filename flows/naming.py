"""Names of flow runs: source, request and time. Branches have the same names."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from prefect.runtime import flow_run


def request_words(workspace: Path, classes: list[str] | None = None) -> str:
    """Return source and request from params.yaml, such as "digits, forget 5".

    `classes`: those of the run's form, which replace the request of params.yaml. File names and filter conditions are
    left out, because they may name people. Returns the name of the workspace if params.yaml cannot be read.
    """
    try:
        params = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
        source, split = params["data"]["source"], params["split"]
        what = f"rows by {split['selector']}"
        if classes or split["selector"] == "classes":
            what = ", ".join(str(c) for c in classes or split["classes"])
        elif split["selector"] == "random":
            what = f"{split['fraction']:.0%} at random"
        elif split["selector"] == "memorised":
            what = f"the {split['fraction']:.0%} memorised most"
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return workspace.name  # the run itself reports what is wrong with the file
    return f"{source}, forget {what}"


def when() -> str:
    """Return the time for which the flow run was scheduled, to the second."""
    return flow_run.get_scheduled_start_time().strftime("%Y-%m-%d %H:%M:%S")


def about_request() -> str:
    """Return the name of a flow run that works on the request of its workspace."""
    given = flow_run.get_parameters() or {}
    workspace = Path(given.get("workspace", ".")).resolve()
    return f"{request_words(workspace, given.get('classes'))} · {when()}"


def branch_of(name: str) -> str:
    """Return the branch of the flow run `name`, such as `expunge/digits-forget-5-2026-11-21-14-03-22`."""
    return "expunge/" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
