"""Names of flow runs: what is forgotten from what, and when; a branch is named the same way."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from prefect.runtime import flow_run


def request_words(workspace: Path) -> str:
    """ "digits, forget 5", from params.yaml; names of files and conditions stay out, they may name people."""
    try:
        params = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
        source, split = params["data"]["source"], params["split"]
        what = f"rows by {split['selector']}"
        if split["selector"] == "classes":
            what = ", ".join(str(c) for c in split["classes"])
        elif split["selector"] == "random":
            what = f"{split['fraction']:.0%} at random"
        elif split["selector"] == "memorised":
            what = f"the {split['fraction']:.0%} learned best by heart"
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return workspace.name  # the run itself will say what is wrong with the file
    return f"{source}, forget {what}"


def when() -> str:
    return flow_run.get_scheduled_start_time().strftime("%Y-%m-%d %H:%M:%S")


def about_request() -> str:
    """The name of a run that works on the request of its workspace."""
    workspace = Path((flow_run.get_parameters() or {}).get("workspace", ".")).resolve()
    return f"{request_words(workspace)} · {when()}"


def branch_of(name: str) -> str:
    """A branch for the flow run `name`: `expunge/digits-forget-5-2026-11-21-14-03-22`."""
    return "expunge/" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
