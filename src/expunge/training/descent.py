"""This module makes optimizers and learning-rate schedules.

SGD is torch's, and one-cycle and constant rates are computed here; all others are timm's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from expunge.models.classifier import Classifier
from expunge.system.errors import ConfigError
from expunge.system.vision_imports import import_vision

WARM_UP = 0.25  # share of the steps in which the learning rate rises
START, END = 0.1, 1e-3  # learning rate at the first and last step, as shares of its peak
SCHEDULES = ("one-cycle", "cosine", "constant")


def one_cycle(step: int, steps: int, lr: float, warmup: float = WARM_UP) -> float:
    """Return the learning rate of `step` in [0, steps).

    It rises linearly from `START * lr` to `lr` and then falls along a cosine to `END * lr`. This follows Smith and
    Topin (arXiv 1708.07120), with a cosine for the decay.
    """
    rise = max(1, round(warmup * steps))
    if step < rise:
        return lr * (START + (1 - START) * step / rise)
    way = (step - rise) / max(1, steps - 1 - rise)
    return lr * (END + (1 - END) * 0.5 * (1 + math.cos(math.pi * way)))


def make_optimizer(
    classifier: Classifier, name: str, lr: float, momentum: float, weight_decay: float, layer_decay: float
) -> torch.optim.Optimizer:
    """Return the optimizer `name` over all weights of `classifier`.

    "sgd" without layer decay is torch's SGD, with Nesterov momentum if `momentum` is positive and weight decay on every
    weight. All others come from `timm.optim.create_optimizer_v2`, without weight decay on norms and biases.
    `layer_decay`: factor of the learning rate from each layer to the one below (timm's groups, BEiT, arXiv 2106.08254);
    the head has the full rate. Raises ConfigError for a name that timm does not know.
    """
    if name == "sgd" and layer_decay == 1.0:
        parameters = list(classifier.parameters())
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0)
    optim = import_vision("timm.optim")
    if name not in optim.list_optimizers():
        raise ConfigError(
            f"params.yaml: train.optimizer: timm has no optimizer {name!r}; list all with timm.optim.list_optimizers()"
        )
    groups = _groups(classifier, weight_decay, layer_decay)
    optimizer: torch.optim.Optimizer = optim.create_optimizer_v2(
        groups, opt=name, lr=lr, momentum=momentum, weight_decay=0.0
    )
    return optimizer


def _groups(classifier: Classifier, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Return timm's parameter groups of the backbone, and the head's groups with the full rate.

    timm numbers the layers by the model's own `group_matcher`, or else by the order of its parameters.
    """
    optim = import_vision("timm.optim")
    backbone = classifier.backbone
    if layer_decay < 1.0:
        own = getattr(backbone, "group_matcher", None)
        core = backbone if own is not None else _Ordered(backbone)
        groups = optim.param_groups_layer_decay(core, weight_decay, layer_decay=layer_decay)
    else:
        groups = optim.param_groups_weight_decay(backbone, weight_decay)
    head = [
        {"params": [classifier.head.weight], "weight_decay": weight_decay, "lr_scale": 1.0},
        {"params": [classifier.head.bias], "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    return [*groups, *head]


class _Ordered(nn.Module):
    """This class wraps a backbone without a `group_matcher`.

    timm makes a layer of every twelve of its parameters, in order.
    """

    pretrained_cfg: ClassVar[dict[str, str]] = {"classifier": "none of its parameters"}

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.inner = backbone


Rate = Callable[[int], None]


def make_schedule(optimizer: torch.optim.Optimizer, name: str, steps: int, lr: float, warmup: float) -> Rate:
    """Return a function that sets the learning rates of `optimizer` for a step in [0, steps).

    The rate depends only on the step. `warmup` is the share of the steps in which the rate rises. "cosine" is timm's
    schedule, down to `END * lr`. "constant" has no decay after the rise. Raises ValueError for another name.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {name!r}")
    if name == "cosine":
        rise = round(warmup * steps)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        timm = import_vision("timm.scheduler").CosineLRScheduler(
            optimizer,
            t_initial=steps,
            lr_min=END * lr,
            warmup_t=rise,
            warmup_lr_init=START * lr if rise else 0.0,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        return timm.step_update  # type: ignore[no-any-return]

    def set_rate(step: int) -> None:
        value = one_cycle(step, steps, lr, warmup)
        if name == "constant":
            rise = round(warmup * steps)
            value = lr * (START + (1 - START) * step / rise) if step < rise else lr
        for group in optimizer.param_groups:
            group["lr"] = value * group.get("lr_scale", 1.0)

    return set_rate
