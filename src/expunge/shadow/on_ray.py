"""`extract.engine: ray`: shadow networks are trained and scored as tasks of a Ray cluster, one network by each.

A network and its margins are files below `data/shadow`, which all machines must see. A lost task or an ended run leaves
what is finished, and only the rest is computed. The result is that of one process to the bit, because a network depends
only on its settings, seed and rows.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch

from expunge.config import Config
from expunge.shadow.networks import Job, Member, make_member
from expunge.system.progress import log_message
from expunge.system.ray_cluster import cluster, one_each, ray_module, run_tasks


def make_on_ray(job: Job, count: int) -> None:
    """Make the networks that are missing of `count` a side, with `extract.workers` tasks of the cluster.

    With `extract.workers` null there are as many as the cluster has GPUs or, if this machine has none, processors.
    Raises ConfigError where Ray is missing or the cluster has too few of them.
    """
    asked, ray, missing = job.config.extract, ray_module(), job.missing(count)
    if not missing:
        return
    # A task must not start a cluster of its own.
    config = dataclasses.replace(job.config, extract=dataclasses.replace(asked, engine="local"))
    with cluster(ray, asked.address, asked.workers):
        task, limit = one_each(ray, make, asked.workers, torch.cuda.is_available())
        log_message(f"shadow: {len(missing)} networks, at most {min(limit, len(missing))} Ray tasks at a time")
        given = config, str(Path.cwd()), torch.get_num_threads()
        run_tasks(ray, task, [(member, *given) for member in missing], limit)


def make(member: Member, config: Config, folder: str, threads: int) -> None:
    """Make one network in a worker. Paths in params and in the job are relative to the workspace `folder`."""
    os.chdir(folder)
    torch.set_num_threads(threads)
    make_member(Job.of_workspace(config), *member)
