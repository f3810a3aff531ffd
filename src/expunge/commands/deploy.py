"""deploy and worker: the pipeline as Prefect deployments, and a process that runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated

import typer

from expunge.system.addresses import hidden, shown
from expunge.system.errors import ExpungeError

POOL = "expunge"
SERVER_SECONDS = 20  # a server on a busy machine takes seconds to answer
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
        str | None, typer.Option(help="Prefix for the deployments of one more workspace, in lower case.")
    ] = None,
    repository: Annotated[
        str | None, typer.Option(help="Address of a git repository. Runs work in a clone of it, not in a folder.")
    ] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit of the repository.")] = "main",
    remote: Annotated[
        str | None, typer.Option(help="Address of the DVC remote, if the repository's .dvc/config names none.")
    ] = None,
    silence: Annotated[
        float | None,
        typer.Option(help="Seconds without a heartbeat after which a run counts as killed; one comes every 30 s."),
    ] = None,
) -> None:
    """Set up or update work pool, deployments, their concurrency limit and automations on the Prefect server in use.

    Without `--repository`, runs work in the folder in which `expunge worker` was started.
    """
    _root()
    options = {"--name": name, "--repository": repository, "--remote": remote, "--revision": revision}
    options["--silence"] = None if silence is None else str(silence)
    _check_names(name, repository, remote)
    ask_server()
    arguments = [part for key, value in options.items() if value is not None for part in (key, value)]
    raise SystemExit(subprocess.call([sys.executable, "-m", "flows.setup", *arguments], env=_environment()))


def worker(
    name: Annotated[str | None, typer.Option(help="Name of the worker in Prefect's list.")] = None,
    limit: Annotated[
        int, typer.Option(help="Maximum number of runs at a time, over all workspaces and waiting approvals.")
    ] = 8,
) -> None:
    """Start a process worker for the deployments. Its working directory is their workspace. Stop it with Ctrl-C."""
    root = _root()
    ask_server()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    command += ["--limit", str(limit), *(["--name", name] if name else [])]
    # A script's shell starts its background jobs with SIGINT ignored, and Prefect stops a worker by sending SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.execve(sys.executable, command, {**_environment(), "EXPUNGE_WORKSPACE": str(root)})


def _check_names(name: str | None, repository: str | None, remote: str | None) -> None:
    """Raise ExpungeError for options that name no deployments of their own."""
    if name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise ExpungeError(f"--name {name!r}: use only lower-case letters, digits and dashes")
    if repository is None and (remote is not None or name is not None):
        raise ExpungeError("--name and --remote are for a workspace in a clone; give its --repository too")


def ask_server() -> None:
    """Raise ExpungeError if PREFECT_API_URL names a server that does not answer. Prefect would end in tracebacks."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return  # Prefect's own settings may name a server
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=SERVER_SECONDS):
            return
    except urllib.error.HTTPError as e:
        if e.code in (401, 403):  # the server is up and asks for credentials, which Prefect sends
            return
        reason = f"/health answers with status {e.code}"
    except (OSError, ValueError) as e:
        reason = str(getattr(e, "reason", e))
    raise ExpungeError(
        f"{shown(url)}: no Prefect server answers ({hidden(reason, url)}); start it with `prefect server start`, or "
        "set PREFECT_API_URL to the one that runs"
    )


def _root() -> Path:
    root = Path.cwd()
    if not (root / "flows").is_dir() or not (root / "prefect.yaml").is_file():
        raise ExpungeError(
            f"{root}: flows/ or prefect.yaml is missing; run this from the root of a workspace, or make one with "
            "`expunge init`"
        )
    return root


def _environment() -> dict[str, str]:
    """What the person set wins over our defaults; `python` in dvc.yaml is the one that runs this."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**PATIENT, **os.environ, "PATH": path}
