"""Test training with several processes: it has the loss curve of one process, and a killed process is replaced."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from torch import distributed, nn
from torch.nn import functional as F

from expunge.config import Config, load_config
from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.finetune.process_group import ProcessGroup, synchronised_batch_norm
from expunge.models.checkpoint import digest_of_tensors
from expunge.system.errors import ConfigError, DataError
from expunge.system.files import read_json
from expunge.training.full import build_classifier, fit_all
from expunge.training.job import RESULT
from expunge.training.launch import train_in_processes
from expunge.training.state import STATE
from tests.pipeline import ENVIRONMENT, ROOT

ROWS, BATCH = 400, 45  # A batch is cut into slices of 23 and 22 rows, and the last batch is shorter.
SECONDS = 240  # A test that takes longer is taken to hang.


def config(engine: str = "torchrun", **train: Any) -> Config:
    given = load_config(ROOT / "params.demo.yaml")
    settings = {"epochs": 3, "batch_size": BATCH, "lr": 0.05, "precision": "fp32", "workers": 2, **train}
    return dataclasses.replace(given, train=dataclasses.replace(given.train, **settings, engine=engine))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("digits") / "dataset"
    prepare("digits", out)
    return Dataset(out)


def alone(chosen: Config, dataset: Dataset, tmp_path: Path) -> tuple[nn.Module, list[dict[str, float]]]:
    classifier = build_classifier(chosen, dataset, 1)
    return classifier, fit_all(chosen, classifier, dataset, np.arange(ROWS), 1, tmp_path / "alone")


def norm_rank(rank: int, port: int, out: Path) -> None:
    """Run batch norm on the slice of process `rank` of two.

    Save its output, gradients and running statistics in the folder `out`.
    """
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    x, weight = torch.randn(7, 3, 4, 4), torch.randn(7, 3, 4, 4)
    network = nn.Sequential(nn.BatchNorm2d(3))
    group = ProcessGroup(rank, 2)
    rows = group.own(torch.arange(7))
    mine = x[rows].clone().requires_grad_(True)
    with synchronised_batch_norm(network, group):
        for _ in range(2):
            y = network(mine)
        (y * weight[rows]).sum().backward()
    grads = [network[0].weight.grad, network[0].bias.grad]
    for g in grads:
        group.total(g)
    assert type(network[0]) is nn.BatchNorm2d
    torch.save([y.detach(), mine.grad, *grads, network[0].running_mean, network[0].running_var], out / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_batch_norm_over_two_processes_is_batch_norm_of_the_whole_batch(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    port = 20_000 + os.getpid() % 20_000
    children = [context.Process(target=norm_rank, args=(rank, port, tmp_path)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(SECONDS)
        assert child.exitcode == 0
    torch.manual_seed(0)
    x, weight = torch.randn(7, 3, 4, 4).requires_grad_(True), torch.randn(7, 3, 4, 4)
    norm = nn.BatchNorm2d(3)
    for _ in range(2):
        y = norm(x)
    (y * weight).sum().backward()
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for i, wanted in enumerate((y.detach(), x.grad)):
        torch.testing.assert_close(torch.cat([one[i], two[i]]), wanted, rtol=1e-4, atol=1e-5)
    for i, wanted in enumerate((norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var), 2):
        torch.testing.assert_close(one[i], wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(two[i], one[i])


def test_slices_cover_a_batch_once() -> None:
    rows = torch.arange(7)
    parts = [ProcessGroup(rank, 3).own(rows) for rank in range(3)]
    assert torch.equal(torch.cat(parts), rows) and [len(p) for p in parts] == [3, 2, 2]
    assert len(ProcessGroup(1, 2).own(rows[:1])) == 0 and torch.equal(ProcessGroup().own(rows), rows)
    assert F.cross_entropy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), reduction="sum").item() == 0.0


def test_torchrun_is_for_all_weights(tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.demo.yaml").read_text())
    params["train"]["engine"] = "torchrun"
    params["model"].update(training="head", saw_forget_data=False)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ConfigError, match=r"train\.engine must be local unless model\.training is full"):
        load_config(tmp_path / "params.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"patience": 5, "accumulate": 2, "optimizer": "adamw", "lr": 1e-3}])
def test_two_processes_have_the_loss_curve_of_one(
    tmp_path: Path, digits: Dataset, changes: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = config(**changes)
    if "accumulate" in changes:  # Batch norm is then of the parts of a batch; frozen statistics are the same in both.
        chosen = dataclasses.replace(chosen, train=dataclasses.replace(chosen.train, frozen_norm=True))
    one, curve = alone(chosen, digits, tmp_path)
    two = build_classifier(chosen, digits, 1)
    capfd.readouterr()
    shared = train_in_processes(chosen, two, digits, np.arange(ROWS), 1, tmp_path / "shared")
    assert capfd.readouterr().err.count("train epoch 1/3: loss") == 1
    for key in ("loss", *(["held_loss"] if "patience" in changes else [])):
        assert [h[key] for h in shared] == pytest.approx([h[key] for h in curve], abs=1e-3), key
    # Momentum and batch norm amplify rounding errors, so single weights differ more than the answers of the networks.
    assert [h["accuracy"] for h in shared] == pytest.approx([h["accuracy"] for h in curve], abs=2.5 / ROWS)
    images = digits.images(np.arange(ROWS))
    with torch.no_grad():
        same = one(images).argmax(1) == two(images).argmax(1)
    assert same.double().mean() > 0.99
    assert not two.training


@pytest.mark.slow
def test_workers_that_augment_do_not_change_what_two_processes_train(tmp_path: Path, digits: Dataset) -> None:
    weights = []
    for workers in (0, 1):
        chosen = config(epochs=1, augment="randaugment", augment_workers=workers)
        classifier = build_classifier(chosen, digits, 1)
        train_in_processes(chosen, classifier, digits, np.arange(ROWS), 1, tmp_path / str(workers))
        weights.append(digest_of_tensors(classifier.state_dict()))
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_an_error_of_training_is_printed_once(
    tmp_path: Path, digits: Dataset, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = config(lr=1000.0, epochs=1)
    classifier = build_classifier(chosen, digits, 1)
    with torch.no_grad():
        classifier.head.weight.fill_(float("nan"))
    began = time.perf_counter()
    chosen = dataclasses.replace(chosen, train=dataclasses.replace(chosen.train, lr=1000.0, momentum=0.99, epochs=4))
    with pytest.raises(DataError, match=r"the loss is .*; lower train\.lr"):
        train_in_processes(chosen, classifier, digits, np.arange(ROWS), 1, tmp_path)
    assert time.perf_counter() - began < SECONDS


CODE = """
import sys
from tests.training.test_torchrun import *
from expunge.training.recipe import make_classifier
chosen = config(epochs=6)
make_classifier(chosen, Dataset(sys.argv[1]), np.arange(ROWS), 1, Path("model"), Path("work"))
"""


def kill_one_in_the_middle(
    tmp_path: Path, digits: Dataset, code: str, is_worker: Callable[[psutil.Process], bool]
) -> None:
    """Run `code`, which trains six passes in two processes, with the last worker killed after two, and undisturbed.

    Both runs must end with the same bytes.
    """

    def start(folder: Path) -> subprocess.Popen[str]:
        folder.mkdir()
        return subprocess.Popen(
            [sys.executable, "-c", code, str(digits.directory)],
            cwd=folder,
            env={**ENVIRONMENT, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    killed = start(tmp_path / "killed")
    deadline, worker = time.monotonic() + SECONDS, None
    while worker is None and time.monotonic() < deadline and killed.poll() is None:
        states = list((tmp_path / "killed" / "work").rglob(STATE))
        if states and passes(states[0]) >= 2:
            workers = [p for p in psutil.Process(killed.pid).children(recursive=True) if is_worker(p)]
            if workers:
                worker = workers[-1]
                worker.send_signal(signal.SIGKILL)
        time.sleep(0.02)
    output, _ = killed.communicate(timeout=SECONDS)
    assert worker is not None and killed.returncode == 0, output[-2000:]
    assert "resuming after epoch" in output
    unhurt = start(tmp_path / "unhurt")
    output, _ = unhurt.communicate(timeout=SECONDS)
    assert unhurt.returncode == 0 and "resuming" not in output
    one, two = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in ("killed", "unhurt"))
    assert one == two


@pytest.mark.slow
def test_a_killed_process_is_replaced_and_goes_on_from_the_last_pass(tmp_path: Path, digits: Dataset) -> None:
    def is_worker(process: psutil.Process) -> bool:
        return "expunge.training.worker" in process.cmdline() and process.environ().get("RANK") == "1"

    kill_one_in_the_middle(tmp_path, digits, CODE, is_worker)


def passes(state: Path) -> int:
    from safetensors import safe_open

    with safe_open(state, "pt") as f:
        import json

        return len(json.loads(f.metadata()["state"])["history"])


def test_a_result_of_an_earlier_run_is_not_taken_for_this_one(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expunge.system.errors import ExpungeError
    from expunge.training import launch

    (tmp_path / RESULT).write_text('{"refused": null, "history": []}')
    monkeypatch.setattr(launch.subprocess, "run", lambda *_a, **_k: subprocess.CompletedProcess([], 9))
    with pytest.raises(ExpungeError, match=r"torchrun failed after 3 restarts with exit status 9"):
        train_in_processes(config(), build_classifier(config(), digits, 1), digits, np.arange(ROWS), 1, tmp_path)
    assert read_json(tmp_path / "job.json")["seed"] == 1
