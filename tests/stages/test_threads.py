"""Test that stages give the same outputs with two threads as with one, exactly or within the tolerances stated here.

Each stage runs by itself on the inputs of the run with one thread. The tolerances follow from how a stage computes.
They were written down before a training with two threads was measured; `extract` had been seen to give the same bytes.

* A stage that adds no floating-point numbers in parallel gives the same bytes.
* `extract` adds up to FAN_IN products in each of LAYERS layers. Two orders of a sum differ by at most
  2 FAN_IN u times the sum of absolute values (u = 2^-24; Higham, Accuracy and Stability of Numerical Algorithms, 2002,
  section 4.2), so features differ by at most 2 LAYERS FAN_IN u of the largest.
* Maps in closed form are computed in float64 and stored in float32. Up to a condition of 10^6, the order of sums moves
  them by no more than the last place of float32, relative to the largest entry.
* Training enlarges every difference of rounding, so no such bound exists. The tolerance is that of another draw of the
  same training: weights are no farther away than those of a model of another seed, and the accuracies of two models on
  n rows differ by at most three standard errors of independent models, 3 sqrt(2 p (1 - p) / n).
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from expunge.data.dataset import Dataset
from expunge.data.split import Split
from expunge.features.store import FeatureStore
from expunge.models.checkpoint import load_classifier
from tests.pipeline import ENVIRONMENT, change
from tests.stages.test_disk import TIMES, copied, entry, outputs, put_back
from tests.system.test_storage import contents

LAYERS, FAN_IN, U = 7, 1152, 2.0**-24  # of resnet-small; 1152 = 128 channels in a window of 3 x 3
FORWARD = 2 * LAYERS * FAN_IN * U
CLOSED = 2.0**-23
TRAINED = ("train", "retrain")
TIMED = (*TIMES, "reports/cost", "reports/figures", "reports/report.html", "reports/model_card.md", "reports/results")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_threads_give_what_one_gives(short, tmp_path):
    workspace = copied(short, tmp_path / "workspace")
    for name in yaml.safe_load((short / "dvc.lock").read_text())["stages"]:
        if name != "register":  # it writes to MLflow, and computes nothing
            check_stage(short, workspace, name)


def check_stage(one: Path, workspace: Path, name: str) -> None:
    """Run a stage with two threads in `workspace`, compare with `one`, and put the outputs of `one` back."""
    with_threads(workspace, name, 2)
    before, after = (contents(root, outputs(one, name)) for root in (one, workspace))
    assert before.keys() == after.keys()
    changed = [
        n for n in before if before[n] != after[n] and not n.startswith(TIMED) and not n.endswith("manifest.json")
    ]
    print(f"{name}: {changed or 'same bytes'}", flush=True)
    kind = name.partition("@")[0]
    if changed and kind in TRAINED:
        check_trained(one, workspace, name)
    elif changed and kind in ("extract", "extract-retrained"):
        check_features(one, workspace, outputs(one, name)[0])
    elif kind == "fit":
        for file in (n for n in before if n.endswith(".safetensors")):
            near(load_file(one / file), load_file(workspace / file), CLOSED)
    else:
        assert not changed
    for out in outputs(one, name):
        put_back(one / out, workspace / out)


def with_threads(workspace: Path, name: str, threads: int) -> None:
    """Run a stage by itself, after its outputs were removed."""
    for out in outputs(workspace, name):
        path = workspace / out
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    run(workspace, entry(workspace, name)["cmd"].split()[1:], threads)


def run(workspace: Path, arguments: list[str], threads: int) -> None:
    given = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, *arguments], cwd=workspace, env=given, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]


def near(one: dict, two: dict, tolerance: float) -> None:
    """Assert that tensors differ by at most `tolerance` of the largest entry of their file."""
    assert one.keys() == two.keys()
    largest = max(float(t.double().abs().max()) for t in one.values() if t.numel())
    worst = max(float((one[k].double() - two[k].double()).abs().max()) for k in one if one[k].numel())
    assert worst <= tolerance * largest, f"{worst / largest:.1e} of the largest entry, {tolerance:.1e} is allowed"


def check_features(one: Path, workspace: Path, store: str) -> None:
    z, other = (FeatureStore(root / store).z() for root in (one, workspace))
    worst = float(np.abs(z - other).max() / np.abs(z).max())
    print(f"{store}: {worst:.1e} of the largest feature")
    assert worst <= FORWARD


def check_trained(one: Path, workspace: Path, name: str) -> None:
    """Compare a model with that of one thread, and with that of another seed."""
    folder = outputs(one, name)[0]
    first, second = (weights(root / folder) for root in (one, workspace))
    (p, rows), (other, _) = (accuracy(one, root / folder) for root in (one, workspace))
    apart, moved = np.linalg.norm(first - of_another_seed(workspace, name)), np.linalg.norm(first - second)
    print(f"{name}: weights {moved / apart:.2f} of another seed's distance, accuracy {p:.3f} and {other:.3f}")
    assert moved <= apart
    assert abs(p - other) <= 3 * math.sqrt(2 * p * (1 - p) / rows)


def of_another_seed(workspace: Path, name: str) -> np.ndarray:
    """Return the weights that the stage gives with one thread and another seed."""
    command, folder = entry(workspace, name)["cmd"].split()[1:], outputs(workspace, name)[0]
    before = (workspace / "params.yaml").read_text()
    if name == "train":
        change(workspace, lambda p: p["train"].update(seed=p["train"]["seed"] + 100))
    else:
        command[-1], folder = "101", "models/retrained/101"
    run(workspace, command, 1)
    (workspace / "params.yaml").write_text(before)
    return weights(workspace / folder)


def weights(folder: Path) -> np.ndarray:
    tensors = load_file(folder / "model.safetensors")
    return np.concatenate([tensors[k].double().numpy().ravel() for k in sorted(tensors)])


def accuracy(one: Path, folder: Path) -> tuple[float, int]:
    """Return the accuracy of a model on the test rows of retained classes, and their number."""
    dataset, rows = Dataset(one / "data/dataset"), Split(one / "data/split").rows("test_retain")
    with torch.inference_mode():
        answers = load_classifier(folder)(dataset.inputs(rows)).argmax(1).numpy()
    return float((answers == dataset.labels()[rows]).mean()), len(rows)
