"""Test relearning above a cut in several processes, of torchrun and of Ray: the result is that of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from expunge.finetune.cut import fetch_activations
from expunge.finetune.relearn import Relearn, logits_above
from expunge.models.checkpoint import digest_of_tensors
from expunge.models.classifier import Classifier
from expunge.system.errors import CollapseError, ConfigError, DataError
from expunge.training.launch import relearning_of
from tests.finetune.test_relearn import IMAGES, LABELS, RETAINED, TEST, original
from tests.pipeline import ENVIRONMENT, ROOT
from tests.training.test_torchrun import SECONDS, config

__all__ = ["original"]
pytestmark = pytest.mark.slow
SETTINGS: dict[str, Any] = {"epochs": 3.0, "batch_size": 63, "precision": "fp32"}  # slices of 32 and 31 rows


@pytest.fixture(scope="module")
def activations(original: Classifier, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return fetch_activations(original, IMAGES, "stage1", tmp_path_factory.mktemp("activations") / "stage1.npy")


@pytest.mark.parametrize(("engine", "targets"), [("torchrun", "labels"), ("torchrun", "original"), ("ray", "original")])
def test_two_processes_relearn_what_one_does(
    original: Classifier, activations: np.ndarray, tmp_path: Path, engine: str, targets: str
) -> None:
    logits = logits_above(original, activations, "stage1", torch.from_numpy(RETAINED))
    given = original, activations, LABELS, RETAINED, logits
    one = Relearn(targets=targets, **SETTINGS).fit(*given)
    two = relearning_of(config(engine), tmp_path / "work")(Relearn(targets=targets, **SETTINGS), *given)
    losses = [[h["loss"] for h in fitted.history_] for fitted in (one, two)]
    assert len(losses[1]) == 3 and losses[1] == pytest.approx(losses[0], abs=1e-3)
    with torch.no_grad():
        answers = [fitted.classifier_(IMAGES[TEST]).argmax(1) for fitted in (one, two)]
    assert (answers[0] == answers[1]).double().mean() > 0.98
    before, after = original.state_dict(), two.classifier_.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before if k.startswith(("backbone.stem.", "backbone.stage1.")))
    assert not two.classifier_.training and not (tmp_path / "work").exists()


def test_activations_in_memory_are_relearned_from_as_well(
    original: Classifier, activations: np.ndarray, tmp_path: Path
) -> None:
    fit = relearning_of(config(), tmp_path / "work")
    mapped, loaded = (
        fit(Relearn(**{**SETTINGS, "epochs": 0.5}), original, a, LABELS, RETAINED)
        for a in (activations, np.array(activations))
    )
    assert digest_of_tensors(mapped.classifier_.state_dict()) == digest_of_tensors(loaded.classifier_.state_dict())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"lr": 1e9}, CollapseError, r"the loss is not finite in pass \d; lower lr"),
        ({"cut": "stage9"}, ConfigError, "stage9"),
    ],
)
def test_an_error_is_what_one_process_raises(
    original: Classifier, activations: np.ndarray, tmp_path: Path, settings: dict[str, Any],
    error: type[Exception], message: str,
) -> None:  # fmt: skip
    for fit in (Relearn.fit, relearning_of(config(), tmp_path)):
        with pytest.raises(error, match=message):
            fit(Relearn(**{**SETTINGS, **settings}), original, activations, LABELS, RETAINED)


def test_a_batch_has_a_row_for_each_process(original: Classifier, activations: np.ndarray, tmp_path: Path) -> None:
    fit = relearning_of(config(workers=3), tmp_path)
    with pytest.raises(DataError, match="batches of 2 rows cannot be shared by 3 processes"):
        fit(Relearn(batch_size=2), original, activations, LABELS, RETAINED)


CODE = """
import sys
from pathlib import Path
import numpy as np
from expunge.finetune.relearn import Relearn
from expunge.models.checkpoint import digest_of_tensors, load_classifier
from expunge.training.launch import relearning_of
from tests.finetune.test_relearn import LABELS, RETAINED
from tests.training.test_relearning import SETTINGS
from tests.training.test_torchrun import config
model, activations = load_classifier(Path(sys.argv[1])), np.load(sys.argv[2], mmap_mode="r")
settings = {**SETTINGS, "epochs": 40.0}
fitted = relearning_of(config(), Path("work"))(Relearn(**settings), model, activations, LABELS, RETAINED)
print("digest", digest_of_tensors(fitted.classifier_.state_dict()))
"""


def test_when_a_process_is_killed_all_start_anew_and_end_with_the_same_bytes(
    original: Classifier, activations: np.ndarray, tmp_path: Path
) -> None:
    from expunge.models.checkpoint import save_classifier
    from expunge.system.files import write_manifest

    (tmp_path / "model").mkdir()
    save_classifier(tmp_path / "model", original)
    write_manifest(tmp_path / "model", "test")

    def ended(kill: bool) -> str:
        run = subprocess.Popen(
            [sys.executable, "-c", CODE, str(tmp_path / "model"), str(activations.filename)],  # type: ignore[attr-defined]
            cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**ENVIRONMENT, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        )  # fmt: skip
        deadline, killed = time.monotonic() + SECONDS, False
        while kill and not killed and run.poll() is None and time.monotonic() < deadline:
            for worker in psutil.Process(run.pid).children(recursive=True):
                if worker.environ().get("RANK") == "1" and worker.cpu_times().user > 5:  # it is relearning by then
                    worker.send_signal(signal.SIGKILL)
                    killed = True
            time.sleep(0.1)
        out, _ = run.communicate(timeout=SECONDS)
        assert run.returncode == 0 and killed == kill and ("after 0 of 3 restarts" in out) == kill, out[-3000:]
        return out.split("digest ")[1]

    assert ended(kill=True) == ended(kill=False)
