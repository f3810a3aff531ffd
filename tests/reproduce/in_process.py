"""Run the stages of dvc.yaml in this process, in order, because a new process for each stage takes seconds to start."""

from __future__ import annotations

import importlib
import sys
from contextlib import chdir
from pathlib import Path
from unittest import mock

import torch
import yaml


def stages(params: dict, targets: tuple[str, ...]) -> list[list[str]]:
    """Return the stages that `dvc repro TARGETS` would run, in order, each with its arguments."""
    first = [["prepare"], ["validate", "dataset"], ["train"], ["extract", "original"], ["validate", "features"]]
    first.append(["activations"])
    if "report" not in targets:
        return first
    seeds = [str(s) for s in params["retrain"]["seeds"]]
    return [
        *first, ["split"], ["validate", "split"],
        *(["retrain", s] for s in seeds), *(["extract", f"retrained/{s}"] for s in seeds),
        *(["fit", m] for m in params["methods"]), ["evaluate"], *(["evaluate", m] for m in params["methods"]),
        ["shadow"], ["compare"], ["report"],
    ]  # fmt: skip


def run_in_process(root: Path, workspace: Path, *targets: str) -> None:
    """Do what `expunge.workspaces.workspace.reproduce` does, but without a process for each stage."""
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    threads = torch.get_num_threads()
    with chdir(workspace):
        for name, *arguments in stages(params, targets):
            with mock.patch.object(sys, "argv", [name, *arguments]):
                importlib.import_module(f"expunge.stages.{name}").main()
    torch.set_num_threads(threads)
