"""Estimated cost of a preset: images x passes / rate. All numbers that the estimate uses are constants here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CORES, GPU = "2 cores", "1 GPU"
# Multiply-adds per second in training and inference. Both rates are guesses, for two cores of a server and for one
# data-centre GPU, and were not measured with these models. Methods are fitted on the processor in both cases.
RATES = {CORES: 25e9, GPU: 15e12}
BACKWARD = 3  # cost of a training step in forward passes
PER_ENTRY_S, PER_ROUND_S = 60, 1  # seconds to start, fit and evaluate one entry of `methods`, in a run or in a round
AUGMENT_S = 1.5e-4  # seconds per image and pass, on the processor
ABOVE = 0.5  # share of a model's operations above the cuts that presets use
HEAD_PASSES = 1450  # passes over the features that a softmax head makes from nothing (docs/exact.md)
AGAIN = 0.1  # share of them for a request, from the present optimum; a guess
RELEARN_STEPS, RELEARN_BATCH = 400, 128  # where `epochs` is null, as in finetune/budget.py
BASE_GB = 1.5  # memory of the loaded libraries


@dataclass(frozen=True)
class DataSize:
    """Numbers of rows, side of an image in memory in pixels, GB on disk as published, and number of classes."""

    train: int
    test: int
    side: int
    raw_gb: float
    classes: int


@dataclass(frozen=True)
class ModelSize:
    """Multiply-adds of one forward pass at the image size of the presets, feature dimension, and million weights."""

    macs: float
    dim: int
    millions: float


DATA = {
    "torchvision:CIFAR10": DataSize(50_000, 10_000, 32, 0.35, 10),
    "torchvision:CIFAR100": DataSize(50_000, 10_000, 32, 0.35, 100),
    "torchvision:TinyImageNet": DataSize(100_000, 10_000, 64, 0.7, 200),
    "torchvision:ImageNet": DataSize(1_281_167, 50_000, 0, 150, 1000),  # files stay encoded, with one batch in memory
    "fashion-mnist": DataSize(60_000, 10_000, 28, 0.09, 10),
    "emoji": DataSize(6_050, 1_512, 64, 0.1, 9),
}
MODELS = {
    "expunge.models.published:resnet18": ModelSize(0.56e9, 512, 11.2),
    "expunge.models.published:wrn_28_10": ModelSize(5.25e9, 640, 36.5),
    "expunge.models.published:resnet34": ModelSize(4.6e9, 512, 21.3),  # 64 pixels
    "torchvision:swin_t": ModelSize(0.37e9, 768, 28.0),  # 64 pixels
    "torchvision:resnet50": ModelSize(4.1e9, 2048, 25.6),
    "resnet-small": ModelSize(0.010e9, 128, 0.3),
    "efficientnet-lite0": ModelSize(
        0.1e9, 1280, 4.7
    ),  # 0.033e9 at 64 pixels, but its layers run at a third of the rate
}


@dataclass(frozen=True)
class Cost:
    """Hours by machine of RATES, and GB of disk and memory."""

    hours: dict[str, float]
    disk_gb: float
    memory_gb: float


def estimate(params: Mapping[str, Any], runs: int, rounds: int = 0) -> Cost:
    """Estimate the cost of a preset whose first run has these params.

    All runs share the original, and each run retrains its own references.
    """
    data, model = DATA[params["data"]["source"]], MODELS[params["model"]["name"]]
    full = params["model"]["training"] == "full"
    references = len(params["retrain"]["seeds"]) if params["reference"] == "retrain" else 0
    passes = BACKWARD * params["train"]["epochs"] if full else 0
    trained = 1 + runs * references
    everything = data.train + data.test
    operations: float = model.macs * (passes * data.train * trained + everything * trained)
    again = max(runs, rounds)
    fitting, evaluating = 0.0, 0.0
    for name in params["methods"]:
        settings = params["fit"][name] or {}
        if settings.get("method", name) in ("relearn", "short-retrain"):
            passes_above = float(settings.get("epochs") or _passes_above(params["train"], data.train))
            fitting += again * model.macs * ABOVE * BACKWARD * passes_above * data.train
            evaluating += again * model.macs * everything
    fitting += _exactly(params, data, model, again)
    overhead: float = (PER_ROUND_S if rounds else PER_ENTRY_S) * len(params["methods"]) * again
    overhead += fitting / RATES[CORES]
    if full and params["train"]["augment"] not in (None, "none"):
        overhead += AUGMENT_S * params["train"]["epochs"] * data.train * trained
    hours = {machine: ((operations + evaluating) / rate + overhead) / 3600 for machine, rate in RATES.items()}
    features = everything * model.dim * 4 / 1e9
    weights = model.millions * 4e6 / 1e9
    pixels = everything * data.side**2 * 3 / 1e9
    cuts = params["activations"]["cuts"]
    activations = data.train * 2 * _floats_behind(params["model"]["name"]) / 1e9 if cuts else 0.0
    disk = 2 * data.raw_gb + pixels + trained * (features + weights) + activations
    logits = everything * 4 * len(params["methods"]) * again * 200 / 1e9
    return Cost(hours, disk + logits, BASE_GB + pixels + 4 * features + 3 * weights)


def _passes_above(train: Mapping[str, Any], rows: int) -> float:
    """Return the passes that relearning takes from the recipe."""
    batch = min(RELEARN_BATCH, int(train["batch_size"]))
    return min(max(1.0, RELEARN_STEPS / (rows // batch)), float(train["epochs"]))


def _exactly(params: Mapping[str, Any], data: DataSize, model: ModelSize, requests: int) -> float:
    """Return the multiply-adds to train a head or what lies above a cut, and to delete the rows of all requests.

    With shards, a request trains one of them again. A ridge head costs nothing beside the rest.
    """
    given = params["model"]
    if given["training"] == "head":
        once = 2.0 * HEAD_PASSES * data.train * model.dim * data.classes
        share = AGAIN
    elif given["training"] == "above":
        once, share = BACKWARD * ABOVE * model.macs * params["train"]["epochs"] * data.train, 1 / given["shards"]
    else:
        return 0.0
    return once * (1 + (requests * share if "exact" in params["methods"] else 0))


def _floats_behind(name: str) -> int:
    """Size of the activations of one image behind the cut that presets use."""
    return {
        "expunge.models.published:resnet18": 256 * 8 * 8,
        "expunge.models.published:wrn_28_10": 320 * 16 * 16,
        "expunge.models.published:resnet34": 256 * 16 * 16,
        "resnet-small": 32 * 14 * 14,
    }.get(name, 0)


def in_words(hours: float) -> str:
    """Format a time in minutes, hours or days."""
    if hours < 1:
        return f"{max(1, round(60 * hours))} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"
