"""The `expunge` command: what a person asks for beside `dvc repro`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from expunge.commands import attack, certificate, cuts, deploy, registry, request, sweep, variant
from expunge.stages import guarded

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def main() -> None:
    """Entry point: an ExpungeError becomes one clear line and exit status 2."""
    guarded(app)


@app.command()
def show() -> None:
    """The result table of the last run, and where its report and its registered version are."""
    from expunge.report.terminal import print_result

    print_result()


@app.command()
def demo(
    keep: Annotated[bool, typer.Option(help="Keep what an earlier demo computed instead of starting anew.")] = False,
) -> None:
    """The whole pipeline on scikit-learn's digits, in a workspace of its own; its outputs are left here."""
    from expunge.report.terminal import print_result
    from expunge.workspaces.demo import run_demo

    run_demo(Path.cwd(), keep)
    print_result()


@app.command()
def texts(
    keep: Annotated[bool, typer.Option(help="Keep what an earlier run computed instead of starting anew.")] = False,
) -> None:
    """The whole pipeline on 23,703 short texts with a sentence encoder, fetched first; its outputs are left here."""
    from expunge.report.terminal import print_result
    from expunge.workspaces.demo import run_texts

    run_texts(Path.cwd(), keep)
    print_result()


@app.command()
def ui(port: int = 5000) -> None:
    """MLflow's UI on loopback. Choose "Model training" at the top left to see runs and models."""
    from expunge.tracking.store import tracking_uri

    uri = tracking_uri()
    print(f"MLflow UI: http://127.0.0.1:{port}  (store: {uri}; choose 'Model training'; Ctrl-C ends it)")
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    raise SystemExit(subprocess.call(command, env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}))


for commands in (registry, attack, variant, deploy, request, certificate, cuts, sweep):
    commands.register(app)

if __name__ == "__main__":
    main()
