"""Check settings, handle erasure requests, and review and serve models. `dvc repro` runs the pipeline itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from expunge.commands import (
    attack,
    certificate,
    check,
    cuts,
    deploy,
    docs,
    init,
    methods,
    people,
    plugins,
    predict,
    registry,
    repro,
    reproduce,
    request,
    sweep,
    variant,
    watch,
)
from expunge.commands.place import need_runs
from expunge.stages import guarded
from expunge.system.addresses import shown
from expunge.system.errors import TrackingError
from expunge.system.files import read_json
from expunge.system.installed import installed_version
from expunge.system.paths import KEYS, SUMMARY
from expunge.system.secret_file import secret_of

WEBHOOK_KEY = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=__doc__,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command. An ExpungeError is printed as one line and ends the process with status 2."""
    guarded(app)


def print_version(asked: bool) -> None:
    """Print the version of this package and exit, if `--version` was given."""
    if asked:
        typer.echo(f"expunge {installed_version()}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Check settings, handle erasure requests, and review and serve models. `dvc repro` runs the pipeline itself."""


@app.command()
def show(json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False) -> None:
    """Show the result table of the last run, and where its report and its registered version are."""
    if json:
        typer.echo(dumps(read_json(SUMMARY), indent=2, ensure_ascii=False))
    else:
        print_result()


@app.command()
def demo(
    keep: Annotated[bool, typer.Option(help="Reuse what an earlier demo computed instead of starting over.")] = False,
) -> None:
    """Run the whole pipeline on scikit-learn's digits, in its own workspace `.expunge/demo`."""
    from expunge.workspaces.demo import run_demo

    start = Path.cwd()
    os.chdir(run_demo(start, keep))
    print_result(start)


@app.command()
def demo_text(
    keep: Annotated[bool, typer.Option(help="Reuse what an earlier run computed instead of starting over.")] = False,
) -> None:
    """Fetch a sentence encoder and run the whole pipeline on 23,703 short texts, in `.expunge/texts`."""
    from expunge.workspaces.demo import run_texts

    start = Path.cwd()
    os.chdir(run_texts(start, keep))
    print_result(start)


@app.command()
def ui(
    port: int = 5000,
    webhooks: Annotated[
        bool, typer.Option("--webhooks", help="Let webhooks call this machine, for `expunge watch --listen`.")
    ] = False,
) -> None:
    """Start MLflow's UI on 127.0.0.1. The printed link opens its pages for model training: runs and models."""
    from expunge.tracking.store import preflight, tracking_uri

    uri = tracking_uri()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port just released is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as e:
            raise TrackingError(
                f"port {port} of this machine cannot be used ({e.strerror}). Probably another server listens there; "
                f"choose another port, as in `expunge ui --port {port + 1}`"
            ) from None
    need_runs()
    preflight()  # creates a missing database behind its lock; MLflow's server would do so while others open it
    page = f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning"
    print(f"MLflow UI: {page}  (store: {shown(uri)}; Ctrl-C ends it)", flush=True)
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
    environment = {**(webhook_settings() if webhooks else {}), **os.environ}
    raise SystemExit(run_as_group(command, {**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}))


def webhook_settings() -> dict[str, str]:
    """Return the settings with which MLflow's server may deliver to this machine over HTTP, and with a key that lasts.

    The server encrypts secrets of webhooks. Without a key in its environment, each of its processes makes its own, and
    none can read the secrets of another.
    """
    return {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        WEBHOOK_KEY: secret_of(KEYS / "mlflow-webhooks.key", WEBHOOK_KEY),
    }


def run_as_group(command: list[str], environment: dict[str, str]) -> int:
    """Run a server and return its exit status. SIGTERM and Ctrl-C end the server with all of its processes."""

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    # MLflow's server starts further processes, which a signal to the first one would leave behind.
    with subprocess.Popen(command, env=environment, start_new_session=True) as server:
        try:
            return server.wait()
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            signal.signal(signal.SIGTERM, before)


def print_result(reader: Path | None = None) -> None:
    """Print the result table of the run in the current directory, with paths from the directory `reader`."""
    from expunge.report import terminal

    terminal.print_result(reader)


for commands in (
    check,
    people,
    registry,
    attack,
    methods,
    plugins,
    variant,
    repro,
    reproduce,
    deploy,
    docs,
    init,
    request,
    certificate,
    cuts,
    sweep,
    watch,
    predict,
):
    commands.register(app)

if __name__ == "__main__":
    main()
