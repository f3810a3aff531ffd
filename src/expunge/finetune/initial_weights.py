"""Initial weights, public or drawn, for a whole network or for the layers above a cut."""

from __future__ import annotations

import copy

import torch

from expunge.models.classifier import Classifier
from expunge.models.cut_split import CutSplit, core_of
from expunge.models.cuts import split_at_cut
from expunge.models.resnet import ResNetSmall
from expunge.models.tokens import Tokens
from expunge.models.zoo import public_start, rebuild
from expunge.system.errors import CollapseError, ConfigError


def anew(classifier: Classifier, seed: int) -> Classifier:
    """Return the same architecture with initial weights that do not depend on those of `classifier`.

    They are public weights where the description records some, else drawn from `seed` with the initialisation of the
    model's package. The head is always drawn. Raises CheckpointError where the public weights differ from the recorded
    ones, CollapseError where weights are not finite.
    """
    with torch.random.fork_rng(), torch.no_grad():  # layers draw from the global generator; its state is restored
        torch.manual_seed(seed)
        if classifier.card.weights:
            new = public_start(classifier.card, classifier.preprocess)
        elif isinstance(classifier.backbone, ResNetSmall | torch.nn.Sequential):  # reset_parameters sets all weights
            new = copy.deepcopy(classifier)
            for module in new.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()  # type: ignore[operator]
        else:
            new = rebuild(classifier.card, classifier.preprocess)
        new.head.reset_parameters()
    if not all(bool(torch.isfinite(t).all()) for t in new.state_dict().values()):
        raise CollapseError("short-retrain: the fresh weights are not finite")
    return new.to(classifier.head.weight.device)


def fresh_above(classifier: Classifier, cut: str, seed: int, start: str = "auto") -> Classifier:
    """Return a copy of `classifier` in which the layers above `cut` have initial weights and the others are unchanged.

    `start`: "public" takes the public weights that the description records, "fresh" draws weights from `seed` with the
    initialisation of the model's own package, and "auto" is "public" where weights are recorded, else "fresh". The head
    is always drawn. Raises ConfigError for "public" where no weights are recorded, CheckpointError where the available
    ones differ from those recorded.
    """
    new = copy.deepcopy(classifier)
    if not isinstance(classifier.preprocess, Tokens):
        new.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    split = split_at_cut(new, cut)
    if start == "public" and not classifier.card.weights:
        raise ConfigError(
            f"{classifier.card.name}: its description records no public weights; set model.weights: public and train "
            "again"
        )
    with torch.random.fork_rng(), torch.no_grad():  # layers draw from the global generator; its state is restored
        torch.manual_seed(seed)
        if start != "fresh" and classifier.card.weights:
            _copy_above(split, public_start(classifier.card, classifier.preprocess))
            new.head.reset_parameters()
        elif isinstance(classifier.backbone, ResNetSmall):  # all its weights are drawn by reset_parameters
            for module in [m for above in [*split.lying_above.modules.values(), new.head] for m in above.modules()]:
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()  # type: ignore[operator]
        else:
            _copy_above(split, rebuild(classifier.card, classifier.preprocess))
            new.head.reset_parameters()
    return new


def _copy_above(split: CutSplit, other: Classifier) -> None:
    """Copy parameters and running statistics above the cut from `other`, of the same architecture."""
    own, theirs = split.core.state_dict(), core_of(other)[0].state_dict()
    above = split.lying_above
    for name, tensor in own.items():
        if name in above.parameters or name.startswith(tuple(f"{path}." for path in above.modules)):
            tensor.copy_(theirs[name])
