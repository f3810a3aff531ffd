"""A method in forty lines: the direction from the forgotten mean to the nearest retained class mean is projected out.

It is an example of a plug-in, not a good method: after `pip install` the entry `nearest-mean` may stand in params.yaml.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.core import AffineMap
from expunge.core.estimator import Estimator
from expunge.core.facts import Facts
from expunge.methods.inputs import FitInputs
from expunge.methods.method import Method, Settings, make
from expunge.methods.unlearned import UnlearnedModel


class NearestMean(Estimator):
    """Projects out the direction between the forgotten mean and the nearest other class mean.

    `strength` is in [0, 1]. `fit(mean (d,), means (C, d))` leaves `map_`.
    """

    facts = Facts(("classes",), ("moments",), "map", "closed form", "an example")

    def __init__(self, strength: float = 1.0) -> None:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength is {strength}; give a number from 0 to 1")
        self.strength = strength

    def fit(self, mean: Tensor, means: Tensor) -> NearestMean:
        nearest = means[(means - mean).norm(dim=1).argmin()]
        u = torch.nn.functional.normalize(mean - nearest, dim=0)
        weight = torch.eye(len(mean), dtype=mean.dtype) - self.strength * torch.outer(u, u)
        middle = (mean + nearest) / 2
        self.map_ = AffineMap(weight.float(), (middle - weight @ middle).float())
        return self


def fit(name: str, request: FitInputs, settings: Settings, before: UnlearnedModel | None) -> UnlearnedModel:
    """`name`: the entry in params.yaml. `before`: the product of `after:`, which this method has no use for."""
    forgotten = request.whole_classes(name)
    stays = [c for c in range(len(request.class_means)) if c not in forgotten]
    fitted = make(name, NearestMean, settings).fit(request.forget.mean, request.class_means[stays])
    return UnlearnedModel(fitted.map_, request.head, {"strength": fitted.strength})


METHOD = Method(NearestMean, fit)
