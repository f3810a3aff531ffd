"""Resolve the recipe that `train:` of params.yaml names. The meaning of null depends on the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.config import Train
from expunge.models.classifier import Classifier

SMALL, FINETUNE = "small", "finetune"

# The values that null stands for. `small` is for networks that start from random weights: SGD with a one-cycle
# schedule. `finetune` is for public weights: AdamW with warm-up and cosine decay. Transformers take a steeper layer
# decay than convolutional networks (BEiT, arXiv 2106.08254; ConvNeXt, arXiv 2201.03545). The values are those of these
# papers and timm's recipes, on the scale of a fine-tuning, and were tried on held-out training rows in
# docs/training.md.
DEFAULTS: dict[str, dict[str, Any]] = {
    "small": {
        "lr": 0.2, "momentum": 0.9, "weight_decay": 5e-4, "optimizer": "sgd", "schedule": "one-cycle", "warmup": 0.25,
        "layer_decay": 1.0, "label_smoothing": 0.0, "ema": 0.0, "frozen_norm": False, "augment": "none",
    },
    "finetune, convolutions": {
        "lr": 1e-3, "momentum": 0.9, "weight_decay": 0.05, "optimizer": "adamw", "schedule": "cosine", "warmup": 0.1,
        "layer_decay": 0.9, "label_smoothing": 0.1, "ema": 0.0, "frozen_norm": False, "augment": "none",
    },
    "finetune, transformer": {
        "lr": 5e-4, "momentum": 0.9, "weight_decay": 0.05, "optimizer": "adamw", "schedule": "cosine", "warmup": 0.1,
        "layer_decay": 0.75, "label_smoothing": 0.1, "ema": 0.0, "frozen_norm": False, "augment": "none",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Every setting of `training.trainer.train`, resolved.

    `name`: key of DEFAULTS. `holdout`: share of the rows that early stopping watches and that are not trained on; 0
    without `patience`.
    """

    name: str
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    precision: str
    optimizer: str
    schedule: str
    warmup: float
    layer_decay: float
    label_smoothing: float
    ema: float
    frozen_norm: bool
    augment: str
    accumulate: int
    compile: bool
    patience: int | None
    holdout: float

    def arguments(self) -> dict[str, Any]:
        """Return the settings as arguments of `train`, which has no `name` and `holdout`."""
        return {k: v for k, v in asdict(self).items() if k not in ("name", "holdout")}


def recipe_of(given: Train, classifier: Classifier) -> Recipe:
    """Return `given` with its nulls resolved.

    The recipe "auto" is "finetune" if the model's card records public weights and "small" otherwise.
    """
    name: str = given.recipe
    if name == "auto":
        name = FINETUNE if classifier.card.weights is not None else SMALL
    if name == FINETUNE:
        name = f"{FINETUNE}, {'convolutions' if _convolutional(classifier.backbone) else 'transformer'}"
    own = DEFAULTS[name]
    chosen = {key: value if (asked := getattr(given, key)) is None else asked for key, value in own.items()}
    precision = given.precision
    if precision == "auto" and name != SMALL and classifier.head.weight.device.type == "cpu":
        precision = "fp32"  # AdamW in bf16 saves little on a CPU
    return Recipe(
        name=name,
        epochs=given.epochs,
        batch_size=given.batch_size,
        precision=precision,
        accumulate=given.accumulate,
        compile=given.compile,
        patience=given.patience,
        holdout=given.holdout if given.patience is not None else 0.0,
        **chosen,
    )


def _convolutional(backbone: nn.Module) -> bool:
    """Return whether the network has batch norm, or more convolutions than linear layers.

    Otherwise it is taken for a transformer.
    """
    modules = list(backbone.modules())
    convolutions = sum(isinstance(m, nn.Conv2d) for m in modules)
    linear = sum(isinstance(m, nn.Linear) for m in modules)
    return any(isinstance(m, _BatchNorm) for m in modules) or convolutions > linear
