"""Test training by Ray Train on a real cluster of this machine: the loss curve of one process, and lost workers."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge.data.dataset import Dataset
from expunge.system.errors import DataError, ExpungeError
from expunge.system.files import read_json
from expunge.training.full import build_classifier
from expunge.training.job import RESULT, TRAINED
from expunge.training.launch import train_in_processes
from tests.features.test_engines import NODES
from tests.pipeline import ENVIRONMENT, ROOT
from tests.training.test_torchrun import ROWS, SECONDS, alone, config, digits, kill_one_in_the_middle

__all__ = ["digits"]
pytestmark = pytest.mark.slow


def on_ray(dataset: Dataset, work: Path, **train: Any) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    chosen = config("ray", **train)
    classifier = build_classifier(chosen, dataset, 1)
    return classifier, train_in_processes(chosen, classifier, dataset, np.arange(ROWS), 1, work)


def test_two_workers_have_the_loss_curve_of_one_process(
    tmp_path: Path, digits: Dataset, capfd: pytest.CaptureFixture[str]
) -> None:
    one, curve = alone(config(), digits, tmp_path)
    capfd.readouterr()
    two, shared = on_ray(digits, tmp_path / "ray")
    assert [h["loss"] for h in shared] == pytest.approx([h["loss"] for h in curve], abs=1e-3)
    assert [h["accuracy"] for h in shared] == pytest.approx([h["accuracy"] for h in curve], abs=2.5 / ROWS)
    images = digits.images(np.arange(ROWS))
    with torch.no_grad():
        assert (one(images).argmax(1) == two(images).argmax(1)).double().mean() > 0.99
    printed = capfd.readouterr().err
    assert [printed.count(f"train epoch {epoch}/3: loss") for epoch in (1, 2, 3)] == [1, 1, 1]
    assert "RayTrainWorker" not in printed and "PlacementGroup" not in printed


def test_an_error_of_training_is_not_tried_again(tmp_path: Path, digits: Dataset) -> None:
    with pytest.raises(DataError, match=r"the loss is .*; lower train\.lr"):
        on_ray(digits, tmp_path / "ray", lr=1000.0, momentum=0.99, epochs=4)


def test_workers_that_keep_failing_end_the_training(tmp_path: Path, digits: Dataset) -> None:
    folder = tmp_path / "ray"
    (folder / (TRAINED + ".tmp")).mkdir(parents=True)  # the weights cannot be written
    with pytest.raises(ExpungeError, match=r"Ray Train failed after 3 restarts: .*; read .*log\.txt"):
        on_ray(digits, folder, epochs=1)


JOIN = """
import dataclasses, sys
from tests.training.test_torchrun import *
from expunge.stages import run
from expunge.training.launch import train_in_processes
address, workers = sys.argv[2], int(sys.argv[3])
chosen = config("ray", epochs=2, workers=workers)
chosen = dataclasses.replace(chosen, extract=dataclasses.replace(chosen.extract, address=address))
dataset = Dataset(sys.argv[1])
classifier = build_classifier(chosen, dataset, 1)
run(lambda: train_in_processes(chosen, classifier, dataset, np.arange(ROWS), 1, Path(f"work-{workers}")))
"""


def test_training_joins_a_running_cluster_of_two_machines(tmp_path: Path, digits: Dataset) -> None:
    """The cluster has two nodes on loopback, of one processor each, in place of two machines."""
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "RAY_AUTH_MODE": "token"}
    environment |= {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with subprocess.Popen(
        [sys.executable, "-c", NODES], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as nodes:
        assert nodes.stdout is not None
        address = next(line.split()[1] for line in nodes.stdout if line.startswith("address "))
        ended = [
            subprocess.run(
                [sys.executable, "-c", JOIN, str(digits.directory), address, workers],
                cwd=tmp_path, env=environment, capture_output=True, text=True,
            )
            for workers in ("2", "3")
        ]  # fmt: skip
        nodes.communicate("\n", timeout=SECONDS)
    assert [e.returncode for e in ended] == [0, 2], ended[0].stderr[-2000:]
    assert len(read_json(tmp_path / "work-2" / RESULT)["history"]) == 2
    assert "train.workers: 3 workers need as many CPUs, but the cluster has 2" in ended[1].stderr


CODE = """
import sys
from tests.training.test_torchrun import *
from expunge.training.recipe import make_classifier
make_classifier(config("ray", epochs=6), Dataset(sys.argv[1]), np.arange(ROWS), 1, Path("model"), Path("work"))
"""


def test_a_killed_worker_is_replaced_and_training_goes_on_from_the_last_pass(tmp_path: Path, digits: Dataset) -> None:
    kill_one_in_the_middle(tmp_path, digits, CODE, lambda process: process.name().startswith("ray::RayTrainWo"))
