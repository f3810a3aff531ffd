"""repro: `dvc repro` with several stages at a time, on this machine or on a Ray cluster."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Literal

import typer

from expunge.config import load_config
from expunge.system.errors import ConfigError
from expunge.system.ray_cluster import cluster, ray_module
from expunge.workspaces.side_by_side import Here, reproduce, threads_for
from expunge.workspaces.stages_on_ray import OnRay


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(repro)


def repro(
    stages: Annotated[
        list[str] | None, typer.Argument(help="What to bring up to date, as for `dvc repro`; all stages if left out.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="How many stages may run at a time.")] = 2,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="local: processes of this machine; ray: tasks of a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="host:port of a running Ray cluster; without it one is started here.")
    ] = None,
) -> None:
    """Run what is stale, as `dvc repro` does, with several stages side by side.

    DVC decides what is stale and records each stage in dvc.lock. Each stage computes with OMP_NUM_THREADS threads; if
    that is not set, the cores are divided by --jobs. If a stage fails, those that run come to their end, and no
    others start.
    """
    root = Path.cwd()
    signal.signal(signal.SIGTERM, _end)
    if address is not None and engine != "ray":
        raise ConfigError("--address names a Ray cluster, but --engine is local; add --engine ray")
    if engine == "local":
        reproduce(root, stages or [], jobs, Here(root, threads_for(jobs)))
    else:
        _on_ray(root, stages or [], jobs, address)
    typer.echo("everything is up to date" if not stages else f"up to date: {', '.join(stages)}")


def _end(number: int, _: object) -> None:
    """Leave as after Ctrl-C, so that the stages that run are ended too."""
    raise SystemExit(128 + number)


def _on_ray(root: Path, stages: list[str], jobs: int, address: str | None) -> None:
    config = load_config()
    if config.extract.engine == "ray":
        raise ConfigError(
            "extract.engine: ray asks the cluster for workers from within a stage, which may wait for its own "
            "processors for ever under --engine ray; set extract.engine: local"
        )
    ray = ray_module("--engine is ray")
    with cluster(ray, address, None, key="--address"):
        gpus = int(config.features.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0)
        reproduce(root, stages, jobs, OnRay(ray, root, jobs, gpus))
