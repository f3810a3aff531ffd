"""deploy and worker: the pipeline as Prefect deployments, and a process that runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from expunge.system.errors import ExpungeError

POOL = "expunge"
# Cold starts on small machines take longer than Prefect's defaults allow for.
PATIENT = {
    "PREFECT_API_REQUEST_TIMEOUT": "120",
    "PREFECT_CLIENT_MAX_RETRIES": "8",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # A run whose process was killed is noticed by its missing heartbeat: see flows/setup.py.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_WORKER_QUERY_SECONDS": "5",
}


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (deploy, worker):
        app.command()(command)


def deploy(
    name: Annotated[
        str | None, typer.Option(help="Prefix of the deployments of one more workspace, in small letters.")
    ] = None,
    repository: Annotated[
        str | None, typer.Option(help="Address of a git repository: runs work in a clone of it instead of a folder.")
    ] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit of the repository.")] = "main",
    remote: Annotated[
        str | None, typer.Option(help="Address of the DVC remote, where the repository's .dvc/config names none.")
    ] = None,
    silence: Annotated[
        float | None,
        typer.Option(help="Seconds without a heartbeat, which come every 30, until a run counts as killed."),
    ] = None,
) -> None:
    """Set up work pool, deployments, their concurrency limit and automations on the Prefect server in use.

    Without `--repository` runs work in the folder in which `expunge worker` was started. Running it again updates.
    """
    _root()
    options = {"--name": name, "--repository": repository, "--remote": remote, "--revision": revision}
    options["--silence"] = None if silence is None else str(silence)
    arguments = [part for key, value in options.items() if value is not None for part in (key, value)]
    raise SystemExit(subprocess.call([sys.executable, "-m", "flows.setup", *arguments], env=_environment()))


def worker(
    name: Annotated[str | None, typer.Option(help="Name in Prefect's list of workers.")] = None,
    limit: Annotated[int, typer.Option(help="Most runs at a time, over all workspaces and waiting approvals.")] = 8,
) -> None:
    """A process worker for the deployments; its working directory is their workspace. Ctrl-C ends it."""
    root = _root()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    command += ["--limit", str(limit), *(["--name", name] if name else [])]
    # A script's shell starts its background jobs deaf to SIGINT, and Prefect ends a worker by sending it one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.execve(sys.executable, command, {**_environment(), "EXPUNGE_WORKSPACE": str(root)})


def _root() -> Path:
    root = Path.cwd()
    if not (root / "flows").is_dir() or not (root / "prefect.yaml").is_file():
        raise ExpungeError(
            f"{root}: no flows/ and prefect.yaml here; run from the root of a workspace, `expunge init` writes them"
        )
    return root


def _environment() -> dict[str, str]:
    """What the person set wins over our defaults; `python` in dvc.yaml is the one that runs this."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**PATIENT, **os.environ, "PATH": path}
