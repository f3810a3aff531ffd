"""Test `train` against softmax regression in numpy, and that a training that is killed resumes to the same bytes."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expunge.models.checkpoint import digest_of_tensors
from expunge.models.classifier import Classifier, ModelCard
from expunge.models.preprocess import Preprocess
from expunge.models.zoo import build
from expunge.system.errors import DataError
from expunge.training.trainer import END, START, STATE, one_cycle, train
from tests.training.training_worker import RECIPE, data, work

IMAGES, LABELS = data(N := 128)
SHORT = {**RECIPE, "epochs": 3, "precision": "fp32"}


def trained(resume_dir: Path | None = None, **changes: Any) -> tuple[Classifier, list[dict[str, float]]]:
    model = build("resnet-small", 10, (8, 8, 1), seed=1)
    return model, train(model, IMAGES, LABELS, **{**SHORT, **changes}, resume_dir=resume_dir)


def digest(model: Classifier) -> str:
    return digest_of_tensors(model.state_dict())


def test_a_step_is_nesterov_sgd_on_cross_entropy() -> None:
    """The reference is softmax regression in numpy, with the gradient (p - y)^T z / n.

    Each batch holds all rows, so their order does not matter.
    """
    pre = Preprocess(8, 8, 1, (0.5,), (0.5,))
    model = Classifier(nn.Flatten(), nn.Linear(64, 10), pre, ModelCard("flat", 10, 64, "full", True))
    lr, momentum, decay, epochs = 0.3, 0.8, 0.01, 4
    z = IMAGES.reshape(N, 64) / 127.5 - 1.0
    z = np.c_[z, np.ones(N)]
    w = np.c_[model.head.weight.detach().numpy(), model.head.bias.detach().numpy()].astype(np.float64)
    v = np.zeros_like(w)
    losses = []
    for step in range(epochs):
        logits = z @ w.T
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        losses.append(-np.log(p[np.arange(N), LABELS]).mean())
        g = (p - np.eye(10)[LABELS]).T @ z / N + decay * w
        v = momentum * v + g
        w = w - one_cycle(step, epochs, lr) * (g + momentum * v)
    history = train(
        model,
        IMAGES,
        LABELS,
        epochs=epochs,
        batch_size=N,
        lr=lr,
        momentum=momentum,
        weight_decay=decay,
        precision="fp32",
        seed=0,
    )
    np.testing.assert_allclose([h["loss"] for h in history], losses, rtol=1e-5)
    np.testing.assert_allclose(model.head.weight.detach().numpy(), w[:, :64], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.head.bias.detach().numpy(), w[:, 64], rtol=1e-4, atol=1e-5)


def test_the_learning_rate_rises_to_its_peak_and_falls() -> None:
    rates = [one_cycle(i, 100, 0.2) for i in range(100)]
    assert rates[0] == pytest.approx(0.2 * START) and rates[25] == max(rates) == pytest.approx(0.2)
    assert rates[-1] == pytest.approx(0.2 * END)
    assert rates[:26] == sorted(rates[:26]) and rates[25:] == sorted(rates[25:], reverse=True)
    assert one_cycle(0, 1, 0.2) > 0


def test_the_trainer_learns_digits_and_returns_its_history() -> None:
    images, labels = data(1797)
    model = build("resnet-small", 10, (8, 8, 1), seed=1)
    history = train(model, images[:1000], labels[:1000], **{**RECIPE, "precision": "fp32", "epochs": 5})
    assert not model.training
    with torch.no_grad():
        accuracy = (model(images[1000:]).argmax(1).numpy() == labels[1000:]).mean()
    assert accuracy > 0.9
    assert [h["epoch"] for h in history] == [1, 2, 3, 4, 5]
    assert history[-1]["loss"] < 0.2 < history[0]["loss"] and history[-1]["accuracy"] > 0.97
    assert all(h["seconds"] > 0 and h["images_per_s"] > 0 and h["bf16"] == 0 for h in history)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    assert digest(trained()[0]) == digest(trained()[0]) != digest(trained(seed=2)[0])


def test_bf16_trains_other_weights_about_as_well() -> None:
    (a, ha), (b, hb) = trained(), trained(precision="bf16")
    assert digest(a) != digest(b)
    assert all(p.dtype == torch.float32 for p in b.parameters())
    assert hb[-1]["loss"] == pytest.approx(ha[-1]["loss"], rel=0.1)


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="Linux says what its processor can")
def test_auto_precision_depends_on_the_processor_and_not_on_timing() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    chosen = "bf16" if flags & {"avx512_bf16", "amx_bf16"} else "fp32"
    model, history = trained(precision="auto")
    assert {h["bf16"] for h in history} == {int(chosen == "bf16")}
    assert digest(model) == digest(trained(precision=chosen)[0])


def test_dropout_is_reproducible_and_the_global_generator_is_given_back() -> None:
    def run() -> str:
        model = build("tests.models.user_models:deep", 10, (8, 8, 1), seed=1)
        train(model, IMAGES, LABELS, **SHORT)
        return digest(model)

    torch.manual_seed(5)
    first, drawn = run(), torch.rand(1)
    assert run() == first
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_a_finished_state_is_returned_at_once_and_another_recipe_starts_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, history = trained(tmp_path)
    again, same = trained(tmp_path)
    # The history holds the seconds of each epoch, so an equal history shows that nothing was trained again.
    assert digest(again) == digest(first) and same == history
    assert "resuming after epoch 3 of 3" in capsys.readouterr().err
    assert digest(trained(tmp_path, lr=0.05)[0]) == digest(trained(lr=0.05)[0])
    assert "another recipe" in capsys.readouterr().err


def test_a_damaged_state_starts_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = trained(tmp_path)
    state = tmp_path / STATE
    state.write_bytes(state.read_bytes()[:1000])
    assert digest(trained(tmp_path)[0]) == digest(first)
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("images", "labels", "changes", "words"),
    [
        (IMAGES, LABELS + 1, {}, r"labels must be in 0\.\.9, the classes of the model, got 1\.\.10"),
        (IMAGES[:5], LABELS, {}, "5 inputs and 128 labels"),
        (IMAGES[:0], LABELS[:0], {}, "0 inputs"),
        (IMAGES, LABELS, {"lr": 1e9}, r"the loss is .*lower train\.lr"),
    ],
)
def test_invalid_settings_and_data_are_refused_before_training(
    images: np.ndarray, labels: np.ndarray, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        train(build("resnet-small", 10, (8, 8, 1)), images, labels, **{**SHORT, **changes})


@pytest.mark.slow
def test_training_that_is_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """A training that is killed with SIGKILL up to six times must end like one that is never killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.training_worker"])  # This imports torch only once.
    random_ = random.Random(0)
    result, resume = tmp_path / "killed", tmp_path / "resume"
    kills, resumed = 0, 0
    while not result.exists():
        process = context.Process(target=work, args=(resume, result, "auto"))
        resumed += (resume / STATE).exists()
        process.start()
        if kills < 6:
            # The process is killed after it wrote a state, at any moment of an epoch or a write.
            before = (resume / STATE).stat().st_mtime_ns if (resume / STATE).exists() else 0
            deadline = time.monotonic() + 60
            while process.is_alive() and time.monotonic() < deadline:
                if (resume / STATE).exists() and (resume / STATE).stat().st_mtime_ns > before:
                    break
                time.sleep(0.002)
            time.sleep(random_.uniform(0, 0.15))
            kills += process.is_alive()
            process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), "training ended by itself with an error"
    assert kills >= 2 and resumed >= kills
    # "auto" chose a precision, which the state keeps. The run that is not killed gets the same one explicitly.
    shutil.rmtree(resume)
    chosen = result.read_text().split()[0]
    process = context.Process(target=work, args=(resume, tmp_path / "unhurt", chosen))
    process.start()
    process.join()
    assert result.read_text() == (tmp_path / "unhurt").read_text()
