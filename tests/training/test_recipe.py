"""Test the recipes of training: the defaults for null, and every setting against an independent reference."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from expunge.checks.resources import missing_for_compiling
from expunge.config import Train, load_config
from expunge.finetune.process_group import ProcessGroup
from expunge.models.checkpoint import digest_of_tensors
from expunge.models.classifier import Classifier, ModelCard
from expunge.models.preprocess import Preprocess
from expunge.models.zoo import build
from expunge.system.errors import ConfigError, DataError
from expunge.training.augment import make_augment
from expunge.training.descent import END, START, make_optimizer, make_schedule
from expunge.training.full import held_out
from expunge.training.recipe import recipe_above, recorded
from expunge.training.settings import DEFAULTS, recipe_of
from expunge.training.state import STATE
from expunge.training.trainer import train
from tests.training.training_worker import RECIPE, data

ROOT = Path(__file__).parents[2]
IMAGES, LABELS = data(N := 128)
SHORT = {**RECIPE, "epochs": 3, "precision": "fp32", "lr": 0.01}
ADAMW = {"optimizer": "adamw", "schedule": "cosine", "warmup": 0.1, "lr": 1e-3, "weight_decay": 0.05}
PRE = Preprocess(8, 8, 1, (0.5,), (0.5,))


def given(**changes: Any) -> Train:
    return dataclasses.replace(load_config(ROOT / "params.yaml").train, **changes)


def flat() -> Classifier:
    torch.manual_seed(3)
    return Classifier(nn.Flatten(), nn.Linear(64, 10), PRE, ModelCard("flat", 10, 64, "full", True))


def model(name: str = "resnet-small", **card: Any) -> Classifier:
    classifier = build(name, 10, (8, 8, 1), seed=1)
    classifier.card = dataclasses.replace(classifier.card, **card)
    return classifier


def digest(made: Classifier) -> str:
    return digest_of_tensors(made.state_dict())


PUBLIC = {"weights": {"source": "x", "digest": "sha256:0"}}


def test_auto_is_the_small_recipe_and_for_public_weights_fine_tuning() -> None:
    small = recipe_of(given(), model())
    assert (small.name, small.optimizer, small.schedule) == ("small", "sgd", "one-cycle")
    assert (small.lr, small.momentum, small.weight_decay, small.epochs, small.batch_size) == (0.2, 0.9, 5e-4, 3, 256)
    public = recipe_of(given(), model(**PUBLIC))
    assert public.name == "finetune, convolutions" and public.optimizer == "adamw" and public.precision == "fp32"
    assert recipe_of(given(recipe="small"), model(**PUBLIC)) == small
    assert recipe_of(given(recipe="finetune", lr=0.5), model()).lr == 0.5
    assert {key for own in DEFAULTS.values() for key in own} <= {f.name for f in dataclasses.fields(Train)}


def test_a_transformer_has_its_own_fine_tuning() -> None:
    vit = build("timm:vit_tiny_patch16_224", 10, (32, 32, 3), image_size=32)
    assert recipe_of(given(recipe="finetune"), vit).name == "finetune, transformer"
    assert recipe_of(given(recipe="finetune"), vit).layer_decay == 0.75


def test_the_small_recipe_gives_the_bytes_that_train_gave_before_there_were_recipes() -> None:
    """Without the arguments of a recipe, `train` is SGD with a one-cycle schedule, which test_trainer.py checks."""
    one, two = model(), model()
    recipe = dataclasses.replace(recipe_of(given(precision="fp32"), one), epochs=2, batch_size=64)
    train(one, IMAGES, LABELS, **recipe.arguments(), seed=1)
    old = {"epochs": 2, "batch_size": 64, "lr": 0.2, "momentum": 0.9, "weight_decay": 5e-4, "precision": "fp32"}
    train(two, IMAGES, LABELS, **old, seed=1)
    assert digest(one) == digest(two)


def test_adamw_equals_a_computation_by_hand() -> None:
    """The reference is numpy: two full-batch steps with decoupled decay (arXiv 1711.05101) of weights, not biases."""
    classifier = flat()
    z = np.c_[IMAGES.reshape(N, 64) / 127.5 - 1.0, np.ones(N)]
    w = np.c_[classifier.head.weight.detach().numpy(), classifier.head.bias.detach().numpy()].astype(np.float64)
    m, v, lr, decay = np.zeros_like(w), np.zeros_like(w), 0.01, 0.1
    decayed = np.ones_like(w)
    decayed[:, -1] = 0
    for step in range(1, 3):
        p = np.exp(z @ w.T)
        p /= p.sum(1, keepdims=True)
        g = (p - np.eye(10)[LABELS]).T @ z / N
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= lr * decay * decayed * w
        w -= lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    changes = {"optimizer": "adamw", "schedule": "constant", "warmup": 0.0, "lr": lr, "weight_decay": decay}
    train(classifier, IMAGES, LABELS, **{**SHORT, **changes, "epochs": 2, "batch_size": N})
    np.testing.assert_allclose(classifier.head.weight.detach().numpy(), w[:, :64], rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(classifier.head.bias.detach().numpy(), w[:, 64], rtol=1e-4, atol=2e-6)


def test_schedules_give_their_documented_rates() -> None:
    def rates(name: str, warmup: float) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        set_rate = make_schedule(optimizer, name, 100, 0.1, warmup)
        found = []
        for step in range(100):
            set_rate(step)
            found.append(optimizer.param_groups[0]["lr"])
        return found

    cosine = rates("cosine", 0.1)
    low = END * 0.1
    wanted = [low + 0.5 * (0.1 - low) * (1 + math.cos(math.pi * t / 100)) for t in range(10, 100)]
    assert cosine[10:] == pytest.approx(wanted)
    assert cosine[:10] == pytest.approx([0.1 * START + t * 0.1 * (1 - START) / 10 for t in range(10)])
    assert rates("constant", 0.0) == [0.1] * 100 and rates("constant", 0.5)[0] == pytest.approx(0.01)
    assert rates("cosine", 0.0)[0] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="one of one-cycle"):
        rates("steps", 0.1)


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "torchvision:resnet18"])
def test_layer_decay_slows_the_layers_below(name: str) -> None:
    classifier = build(name, 10, (32, 32, 3), image_size=32)
    optimizer = make_optimizer(classifier, "adamw", 1e-3, 0.9, 0.05, 0.5)
    scale = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    order = [scale[id(p)] for p in classifier.backbone.parameters()]
    assert len(scale) == len(list(classifier.parameters())) and scale[id(classifier.head.weight)] == 1.0
    assert order[0] == min(order) < 0.1 and max(order[-2:]) >= 0.5
    set_rate = make_schedule(optimizer, "cosine", 10, 1e-3, 0.0)
    set_rate(0)
    assert {round(g["lr"] / g["lr_scale"], 9) for g in optimizer.param_groups} == {1e-3}
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert all((id(p) in decayed) == (p.ndim > 1) for p in classifier.backbone.parameters() if p.ndim <= 2)


def test_an_optimizer_that_timm_does_not_know() -> None:
    with pytest.raises(ConfigError, match=r"train\.optimizer: timm has no optimizer 'sdg'"):
        make_optimizer(model(), "sdg", 0.1, 0.9, 0.0, 1.0)


def test_label_smoothing_is_a_mixture_with_the_uniform_answer() -> None:
    classifier = flat()
    with torch.no_grad():
        logp = F.log_softmax(classifier(IMAGES), 1).double()
    nll, uniform = -logp[torch.arange(N), torch.from_numpy(LABELS).long()].mean(), -logp.mean()
    history = train(classifier, IMAGES, LABELS, **{**SHORT, "epochs": 1, "batch_size": N}, label_smoothing=0.2)
    assert history[0]["loss"] == pytest.approx(float(0.8 * nll + 0.2 * uniform), rel=1e-5)


def test_accumulated_batches_are_the_whole_batch_where_nothing_depends_on_a_batch() -> None:
    def trained(parts: int, size: int) -> tuple[Classifier, list[dict[str, float]]]:
        classifier = flat()
        return classifier, train(classifier, IMAGES, LABELS, **{**SHORT, "batch_size": size}, accumulate=parts)

    # The batches of 50 rows are split into 17, 17 and 16; the last batch has 28 rows.
    whole, parts = trained(1, 50), trained(3, 50)
    torch.testing.assert_close(parts[0].head.weight, whole[0].head.weight, rtol=1e-5, atol=1e-6)
    assert [h["loss"] for h in parts[1]] == pytest.approx([h["loss"] for h in whole[1]], rel=1e-5)
    assert [h["accuracy"] for h in parts[1]] == [h["accuracy"] for h in whole[1]]


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_for_compiling()), reason="torch.compile needs a C++ compiler and header files")
def test_a_compiled_network_trains_as_the_plain_one_and_resumes_with_the_same_bytes(tmp_path: Path) -> None:
    def trained(**more: Any) -> tuple[Classifier, list[dict[str, float]]]:
        torch.compiler.reset()
        classifier = model()
        return classifier, train(classifier, IMAGES, LABELS, **SHORT, **more)

    plain, history = trained()
    compiled, other = trained(compile=True)
    assert [h["loss"] for h in other] == pytest.approx([h["loss"] for h in history], rel=1e-3)
    assert not torch.equal(compiled.head.weight, plain.head.weight), "nothing was compiled"
    assert compiled.state_dict().keys() == plain.state_dict().keys()

    class Ends(ProcessGroup):
        def total(self, value: torch.Tensor) -> torch.Tensor:
            passes.append(value)
            if len(passes) == 2:
                raise KeyboardInterrupt
            return value

    passes: list[torch.Tensor] = []
    with pytest.raises(KeyboardInterrupt):
        trained(compile=True, resume_dir=tmp_path, group=Ends())
    assert digest(trained(compile=True, resume_dir=tmp_path)[0]) == digest(compiled)


def test_frozen_norms_keep_their_statistics() -> None:
    for frozen in (False, True):
        classifier = model()
        before = copy.deepcopy(classifier.state_dict())
        train(classifier, IMAGES, LABELS, **SHORT, frozen_norm=frozen)
        statistics = [k for k in before if "running" in k]
        retained = [torch.equal(before[k], classifier.state_dict()[k]) for k in statistics]
        assert statistics and all(retained) == frozen and any(retained) == frozen
        assert not torch.equal(before["head.weight"], classifier.state_dict()["head.weight"])


def test_the_moving_average_is_the_one_of_its_definition() -> None:
    """With timm's warm-up, the decay at update t is min(d, 1 - (1 + t)^(-2/3)). The first update copies the weights."""
    settings = {**SHORT, "schedule": "constant", "warmup": 0.0, "momentum": 0.0, "batch_size": N, "weight_decay": 0.0}
    path = []
    for epochs in range(1, 5):
        classifier = flat()
        train(classifier, IMAGES, LABELS, **{**settings, "epochs": epochs})
        path.append(classifier.head.weight.detach().clone())
    average = path[0]
    for t, weight in enumerate(path[1:], 1):
        decay = min(0.6, 1 - (1 + t) ** (-2 / 3))
        average = decay * average + (1 - decay) * weight
    classifier = flat()
    train(classifier, IMAGES, LABELS, **{**settings, "epochs": 4}, ema=0.6)
    torch.testing.assert_close(classifier.head.weight.detach(), average, rtol=1e-5, atol=1e-6)


def test_early_stopping_never_trains_on_held_out_rows_and_takes_the_best_pass() -> None:
    mask = held_out(N, 0.3)
    wrong = LABELS.copy()
    wrong[mask] = (wrong[mask] + 1) % 10  # Learning the other rows raises their loss.
    classifier = flat()
    history = train(classifier, IMAGES, wrong, **{**SHORT, "epochs": 30, "lr": 0.5}, patience=3, holdout=mask)
    losses = [h["held_loss"] for h in history]
    assert len(history) < 30 and min(losses) < min(losses[-3:]) and losses.index(min(losses)) == len(losses) - 4
    best = flat()
    train(best, IMAGES, wrong, **{**SHORT, "epochs": 30, "lr": 0.5}, patience=30, holdout=mask)
    assert digest(best) == digest(classifier)
    with torch.no_grad():
        logits = classifier(IMAGES[mask])
    assert F.cross_entropy(logits, torch.from_numpy(wrong[mask]).long()).item() == pytest.approx(min(losses), rel=1e-5)
    assert torch.equal(torch.from_numpy(held_out(N, 0.3)), torch.from_numpy(mask)) and 20 < mask.sum() < 60
    with pytest.raises(DataError, match=r"raise train\.holdout"):
        train(flat(), IMAGES, LABELS, **SHORT, patience=2, holdout=np.zeros(N, bool))


@pytest.mark.parametrize("name", ["flip-crop", "randaugment", "trivial"])
@pytest.mark.parametrize("shape", [(5, 12, 10), (5, 12, 10, 3)])
def test_augmented_pictures_have_the_same_shape_and_differ(name: str, shape: tuple[int, ...]) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    augment = make_augment(name, 12, 10)
    assert augment is not None
    torch.manual_seed(0)
    one = augment(images)
    torch.manual_seed(0)
    assert torch.equal(augment(images), one)
    assert one.shape == images.shape and one.dtype == torch.uint8 and not torch.equal(one, images)


def test_augmentation_is_drawn_anew_for_each_pass_and_the_same_in_every_run() -> None:
    assert make_augment("none", 8, 8) is None
    losses = [[h["loss"] for h in train(flat(), IMAGES, LABELS, **SHORT, augment=a)] for a in ("flip-crop",) * 2]
    plain = [h["loss"] for h in train(flat(), IMAGES, LABELS, **SHORT)]
    assert losses[0] == losses[1] != plain


EVERYTHING = {
    **ADAMW, "layer_decay": 0.8, "label_smoothing": 0.1, "ema": 0.9, "augment": "flip-crop", "accumulate": 2,
    "patience": 5,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes", [ADAMW, EVERYTHING, {"optimizer": "lamb", "lr": 1e-3}], ids=["adamw", "all", "lamb"]
)
def test_training_goes_on_from_the_last_pass_to_the_same_bytes(tmp_path: Path, changes: dict[str, Any]) -> None:
    mask = held_out(N, 0.2) if "patience" in changes else None

    def trained(directory: Path | None, stop: bool = False) -> Classifier:
        classifier = model()
        steps = 0

        class Killed(Exception):
            pass

        def dies(*_given: Any) -> None:
            nonlocal steps
            steps += 1
            if steps > 5:
                raise Killed

        handle = classifier.head.register_forward_hook(dies) if stop else None
        with contextlib.suppress(Killed):
            train(classifier, IMAGES, LABELS, **{**SHORT, **changes}, holdout=mask, resume_dir=directory)
        if handle is not None:
            handle.remove()
        return classifier

    whole = digest(trained(None))
    trained(tmp_path, stop=True)
    assert (tmp_path / STATE).is_file()
    assert digest(trained(tmp_path)) == whole


def test_the_card_records_mean_and_final_rate() -> None:
    classifier = model()
    recipe = dataclasses.replace(recipe_of(given(), classifier), epochs=2, batch_size=64)
    history = train(classifier, IMAGES, LABELS, **{**recipe.arguments(), "precision": "fp32"}, seed=1)
    output = recorded(recipe, history)
    from expunge.training.descent import one_cycle

    assert output["mean_lr"] == pytest.approx(np.mean([one_cycle(i, 4, 0.2) for i in range(4)]))
    assert output["final_lr"] == pytest.approx(0.2 * END) and output["name"] == "small" and output["passes"] == 2
    assert output["precision"] == "fp32"
    assert ModelCard.from_json(dataclasses.replace(classifier.card, recipe=output).to_json()).recipe == output


def test_training_above_a_cut_takes_the_optimizer_and_refuses_the_rest() -> None:
    config = load_config(ROOT / "params.yaml")
    above = dataclasses.replace(config.model, cut="stage1")

    def arguments(**changes: Any) -> dict[str, Any]:
        changed = dataclasses.replace(config, model=above, train=given(**changes))
        return recipe_above(changed, 1, model(**PUBLIC))

    fine, small = arguments(), arguments(recipe="small")
    assert (fine["optimizer"], fine["lr"], fine["weight_decay"]) == ("adamw", 1e-3, 0.05)
    assert (small["optimizer"], small["lr"], small["momentum"]) == ("sgd", 0.2, 0.9)
    for changes in (
        {"ema": 0.9},
        {"augment": "trivial"},
        {"patience": 2},
        {"schedule": "cosine"},
        {"accumulate": 2},
        {"compile": True},
    ):
        with pytest.raises(
            ConfigError, match=rf"train\.{next(iter(changes))}: cannot be used with model\.training: above"
        ):
            arguments(**changes)
    with pytest.raises(ConfigError, match="optimizer must be one of auto, sgd, adamw, got 'lamb'"):
        arguments(optimizer="lamb")
