"""The pipeline as a Prefect flow: one task per DVC stage, in the order of dvc.yaml.

`python -m flows.unlearn` runs it without a server of your own; a deployment runs the same function. DVC decides what is
stale, so a task whose stage is up to date ends at once. Tasks exchange strings only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import deque
from pathlib import Path

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "true")
# A cold start of the temporary server takes longer than Prefect's 20 seconds on a small machine.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

BUSY = "is busy"
# What may pass by itself: fetching a source, reaching a tracking server.
REGISTER = "register"
OUTSIDE = ("prepare", REGISTER)
TAIL = 40


class StageFailedError(RuntimeError):
    """A DVC stage exited with a status other than 0; the message ends with its last lines."""


class PreflightError(RuntimeError):
    """The run could not end well: params are wrong, or the tracking server is away. Nothing was started."""


def stage_names(workspace: Path) -> list[str]:
    """All stages of dvc.yaml, matrix stages expanded, in file order, which is an order they can run in."""
    out = subprocess.run(
        _dvc("stage", "list", "--name-only"),
        cwd=workspace,
        env=_environment(),
        text=True,
        capture_output=True,
        check=True,
    )
    return out.stdout.split()


def preflight(workspace: Path) -> None:
    """Raise PreflightError now if the last stage could not log and register what the stages before it take long to
    make."""
    command = [sys.executable, "-m", "expunge.cli", "preflight"]
    done = subprocess.run(command, cwd=workspace, env=_environment(), text=True, capture_output=True)
    if done.returncode != 0:
        raise PreflightError(done.stderr.strip() or f"{' '.join(command)}: exit status {done.returncode}")


def _dvc(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dvc", *arguments]


def _environment() -> dict[str, str]:
    """dvc.yaml says `python`; let it be the one that runs the flow, whatever PATH says."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "DVC_NO_ANALYTICS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _may_pass_by_itself(_task: Task[..., object], run: TaskRun, state: State[object]) -> bool:
    """Retry when another process held the workspace, or when the stage talks to the world outside."""
    return BUSY in (state.message or "") or any(run.name.startswith(name) for name in OUTSIDE)


@task(
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=5),
    retry_condition_fn=_may_pass_by_itself,
    task_run_name="{stage}",
)
def run_stage(stage: str, workspace: str, force: bool = False) -> str:
    """Run one stage with `dvc repro --single-item`, output streamed into the log. Returns "done" or "up to date"."""
    logger = get_run_logger()
    command = _dvc("repro", "--single-item", *(["--force"] if force else []), stage)
    tail: deque[str] = deque(maxlen=TAIL)
    with subprocess.Popen(
        command, cwd=workspace, env=_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                logger.info(line.rstrip())
                tail.append(line.rstrip())
    if process.returncode != 0:
        raise StageFailedError(f"stage {stage} exited with status {process.returncode}:\n" + "\n".join(tail))
    return "up to date" if any("didn't change, skipping" in line for line in tail) else "done"


@flow(name="unlearn", flow_run_name="unlearn", log_prints=True)
def unlearn(workspace: str = ".", stages: list[str] | None = None, force: bool = False) -> dict[str, str]:
    """Bring the pipeline up to date and publish the result table.

    Args:
        workspace: the clone to work in: a folder with dvc.yaml and params.yaml.
        stages: names of the stages to run, in this order; all of dvc.yaml when left out.
        force: run the stages even where nothing changed.
    """
    root = Path(workspace).resolve()
    names = stages or stage_names(root)
    if REGISTER in names:
        preflight(root)
    outcome = {name: run_stage(name, str(root), force) for name in names}
    publish(root)
    return outcome


def publish(root: Path) -> None:
    """The result table and where everything lies, as a Markdown artifact of the flow run."""
    results = root / "reports" / "results.md"
    if not results.is_file():
        return
    links = (
        "\n\n- Report: `reports/report.html`, data: `reports/summary.json`\n"
        "- Data Docs: `reports/data_docs/*/index.html`\n"
        "- MLflow: `make ui`, then Experiments (Model training)\n"
    )
    create_markdown_artifact(
        key="unlearning-result",
        markdown=results.read_text(encoding="utf-8") + links,
        description="Every method beside original and retrained",
    )


def main() -> None:
    """The command line: `python -m flows.unlearn`."""
    parser = argparse.ArgumentParser(description="Run the pipeline as a Prefect flow, one task per DVC stage.")
    parser.add_argument("--workspace", default=".", help="folder with dvc.yaml and params.yaml")
    parser.add_argument("--stages", nargs="+", help="only these, in this order; all when left out")
    parser.add_argument("--force", action="store_true", help="run stages even where nothing changed")
    arguments = parser.parse_args()
    unlearn(arguments.workspace, arguments.stages, arguments.force)


if __name__ == "__main__":
    main()
